"""The life of a server, in a process of its own, with real signals: start, drain, stop, and never an orphan."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from reward_server import wire
from reward_server.addresses import TCP, Unix, parse_address
from reward_server.client import RewardClient
from reward_server.config import config_from_mapping
from reward_server.errors import ConfigError, UnavailableError
from reward_server.launch import ServerProcess, launch_server
from reward_server.serving.server import RewardServer
from reward_server.types import GroupScores
from reward_server.v1 import reward_pb2_grpc as pb_grpc
from tests.support.builders import make_group

FILE = Path(__file__).parents[2] / "support" / "misbehaving.py"
OBEYS = {"type": "function", "name": "obeys", "function": f"{FILE}:obeys"}
LENGTH = {"type": "length", "name": "short", "max": 3}

Start = Callable[..., tuple[ServerProcess, RewardClient]]

pytestmark = pytest.mark.slow  # one process after another, each with its own


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a server with the function `obeys`; gives it and a client that is connected."""
    begun: list[tuple[ServerProcess, RewardClient]] = []

    def begin(listen: str | None = None, **config: Any) -> tuple[ServerProcess, RewardClient]:
        server = launch_server({"scorers": [OBEYS], "workers": 2, **config}, listen=listen, timeout_s=60)
        client = RewardClient(server.endpoint, timeout_s=20)
        begun.append((server, client))
        client.info()
        return server, client

    yield begin
    for server, client in begun:
        client.close()
        server.stop(grace_s=0.1)


def in_flight(client: RewardClient, completion: str) -> Future[GroupScores]:
    pending = client.submit(make_group([completion], group_id=completion))
    time.sleep(0.3)  # it has reached the worker by then
    return pending


def exit_code(server: ServerProcess, within_s: float) -> int:
    deadline = time.monotonic() + within_s
    while (code := server.poll()) is None:
        assert time.monotonic() < deadline, f"the server lives after {within_s} s"
        time.sleep(0.02)
    return code


def ends(pid: int, within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not is_running(pid)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def children(pid: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(stat.parent.name))
        except OSError:
            continue
    return found


# ---------------------------------------------------------------------------------------------------------------- drain


@pytest.mark.parametrize("name", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_calls_in_flight_finish_and_exits_with_0(start: Start, name: signal.Signals) -> None:
    server, client = start()
    pending = in_flight(client, "sleep 1")
    os.kill(server.pid, name)
    assert pending.result(10).scorers[0].scores[0].value == 7.0
    assert exit_code(server, within_s=5) == 0


def test_while_it_drains_health_is_not_serving_and_new_calls_are_unavailable(start: Start) -> None:
    server, client = start()
    pending = in_flight(client, "sleep 1.5")
    with grpc.insecure_channel(server.endpoint, options=[("grpc.enable_retries", 0)]) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        stub = pb_grpc.RewardServiceStub(channel)
        for service in ("", "reward_server.v1.RewardService"):
            answer = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=5)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        os.kill(server.pid, signal.SIGTERM)
        time.sleep(0.3)
        answer = health.Check(health_pb2.HealthCheckRequest(), timeout=5)
        assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING
        with pytest.raises(grpc.RpcError) as caught:
            stub.ScoreGroup(wire.encode_group(make_group(["a"])), timeout=5)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "draining" in caught.value.details()
    assert pending.result(10).scorers[0].scores[0].value == 9.0
    assert exit_code(server, within_s=5) == 0


def test_a_call_that_outlasts_the_grace_is_cut_as_unavailable_and_the_exit_code_says_so(start: Start) -> None:
    server, _ = start(drain_grace_s=0.3)
    with grpc.insecure_channel(server.endpoint, options=[("grpc.enable_retries", 0)]) as channel:
        call = pb_grpc.RewardServiceStub(channel).ScoreGroup.future(wire.encode_group(make_group(["hang"])), timeout=20)
        time.sleep(0.5)
        os.kill(server.pid, signal.SIGTERM)
        error = call.exception(timeout=10)
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert "the server stopped before this group was scored" in error.details()
    assert exit_code(server, within_s=5) == 1


def test_a_second_signal_stops_at_once(start: Start) -> None:
    server, client = start(drain_grace_s=600)
    pending = in_flight(client, "hang")
    os.kill(server.pid, signal.SIGTERM)
    time.sleep(0.2)
    assert server.poll() is None
    os.kill(server.pid, signal.SIGTERM)
    assert exit_code(server, within_s=5) == 1
    pending.cancel()


def test_a_health_watcher_does_not_hold_up_the_end(start: Start) -> None:
    server, _ = start()
    with grpc.insecure_channel(server.endpoint) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=20)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        os.kill(server.pid, signal.SIGTERM)
        assert exit_code(server, within_s=3) == 0
        watch.cancel()


# -------------------------------------------------------------------------------------------------------------- orphans


@pytest.mark.parametrize("command", ["hang", "spin"])
def test_workers_end_when_their_server_is_killed(start: Start, command: str) -> None:
    server, client = start()
    pending = in_flight(client, command)
    workers = children(server.pid)
    assert workers
    os.kill(server.pid, signal.SIGKILL)
    assert all(ends(pid, within_s=2) for pid in workers)
    pending.cancel()


PARENT = f"""
import sys, time
from reward_server.launch import launch_server
server = launch_server({{"scorers": [{OBEYS!r}], "workers": 1}})
print(server.pid, flush=True)
time.sleep(600)
"""


def test_a_server_ends_within_a_second_of_its_parents_death_by_kill_9() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        workers = children(pid)
        parent.kill()
        assert ends(pid, within_s=1.5)
        assert all(ends(worker, within_s=1) for worker in workers)


def test_a_server_that_is_still_loading_ends_with_its_parent_too(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text("import time\nopen('loading', 'w')\ntime.sleep(600)\n")
    config = {"scorers": [{"type": "function", "name": "f", "function": "slow.py:f"}]}
    code = f"from reward_server.launch import launch_server\nlaunch_server({config!r}, timeout_s=600)"
    with subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path) as parent:
        deadline = time.monotonic() + 20
        while not (tmp_path / "loading").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        [server] = children(parent.pid)
        [worker] = children(server)
        parent.kill()
        assert ends(server, within_s=2)
        assert ends(worker, within_s=2)


# ------------------------------------------------------------------------------------------------------------ addresses


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:5", TCP("127.0.0.1", 5)),
        ("[::1]:5", TCP("[::1]", 5)),
        ("reward.example:0", TCP("reward.example", 0)),
        ("unix:a/b", Unix(Path("a/b"))),
        ("unix:///a/b", Unix(Path("/a/b"))),
    ],
)
def test_addresses_are_read(text: str, address: TCP | Unix) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize(
    "text", ["", "x", "x:", ":5", "x:y", "x:70000", "::1:5", "unix:", "http://x:5", "unix:" + "x" * 104]
)
def test_what_is_no_address_is_refused_and_named(text: str) -> None:
    with pytest.raises(ConfigError, match="listen: "):
        parse_address(text)


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]", "reward.example", "10.0.0.1"])
def test_listening_beyond_this_machine_needs_the_word(host: str) -> None:
    mapping = {"scorers": [LENGTH], "listen": f"{host}:0"}
    with pytest.raises(ConfigError, match="--insecure or allow_insecure: true"):
        RewardServer(config_from_mapping(mapping))
    RewardServer(config_from_mapping({**mapping, "allow_insecure": True}))


def test_several_addresses_are_served_and_port_0_tells_the_real_one(tmp_path: Path) -> None:
    read, write = os.pipe()
    arguments = ["--listen", "127.0.0.1:0", "--listen", f"unix:{tmp_path}/s", "--ready-fd", str(write)]
    config = tmp_path / "c.yaml"
    config.write_text(json.dumps({"scorers": [LENGTH]}))
    command = [sys.executable, "-m", "reward_server.cli", "serve", "--config", str(config), *arguments]
    with subprocess.Popen(command, pass_fds=[write]) as process:
        os.close(write)
        with open(read) as ready:
            endpoints = json.loads(ready.readline())["endpoints"]
        assert len(endpoints) == 2
        assert int(endpoints[0].rpartition(":")[2]) > 0
        for endpoint in endpoints:
            with RewardClient(endpoint) as client:
                assert client.score(make_group(["ab"])).scorers[0].scores[0].value == 1.0
        process.terminate()
    assert process.returncode == 0
    assert not (tmp_path / "s").exists()


def test_two_servers_cannot_share_a_port(start: Start) -> None:
    server, _ = start(listen="127.0.0.1:0")
    with pytest.raises(ConfigError, match=rf"cannot listen on {server.endpoint}.*choose another port"):
        launch_server({"scorers": [LENGTH]}, listen=server.endpoint)


def test_the_socket_file_of_a_dead_server_is_taken_over_and_removed_at_the_end(tmp_path: Path, start: Start) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    server, _ = start(listen=f"unix:{path}")
    assert server.stop() == 0
    assert not path.exists()


def test_the_socket_of_a_live_server_is_left_to_it(start: Start) -> None:
    server, client = start()
    with pytest.raises(ConfigError, match="another server does; stop it or choose another path"):
        launch_server({"scorers": [LENGTH]}, listen=server.endpoint)
    assert client.info().scorers


def test_a_file_that_is_no_socket_is_not_removed(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("precious")
    with pytest.raises(ConfigError, match="a file of that name that is no socket"):
        launch_server({"scorers": [LENGTH]}, listen=f"unix:{tmp_path}/s")
    assert (tmp_path / "s").read_text() == "precious"


# -------------------------------------------------------------------------------------------------------------- company


def test_reflection_tells_what_is_served(start: Start) -> None:
    server, _ = start()
    with grpc.insecure_channel(server.endpoint) as channel:
        services = ProtoReflectionDescriptorDatabase(channel).get_services()
    assert {"reward_server.v1.RewardService", "grpc.health.v1.Health"} <= set(services)


def test_reflection_may_be_off_and_health_never_is(start: Start) -> None:
    server, _ = start(reflection=False)
    with grpc.insecure_channel(server.endpoint) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            ProtoReflectionDescriptorDatabase(channel).get_services()
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
    assert health.status == health_pb2.HealthCheckResponse.SERVING


def test_a_light_configuration_loads_no_model_library(tmp_path: Path) -> None:
    source = "import sys\n{} f(completions, **_):\n    return [float(any(m in sys.modules for m in {!r}))]\n"
    heavy = ("torch", "transformers", "trl", "numpy")
    (tmp_path / "loop.py").write_text(source.format("async def", heavy))
    (tmp_path / "worker.py").write_text(source.format("def", heavy))
    scorers = [{"type": "function", "name": n, "function": f"{tmp_path}/{n}.py:f"} for n in ("loop", "worker")]
    with launch_server({"scorers": [*scorers, LENGTH]}) as server, RewardClient(server.endpoint) as client:
        scores = client.score(make_group(["a"]))
    assert [scorer.scores[0].value for scorer in scores.scorers] == [0.0, 0.0, 1.0]


def test_nobody_answers_after_the_end(start: Start) -> None:
    server, client = start()
    server.stop()
    with pytest.raises(UnavailableError):
        client.info(2)
