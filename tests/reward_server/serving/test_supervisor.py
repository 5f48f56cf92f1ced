"""Several server processes as one server: real processes and signals; one address, one end, one configuration."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest

from reward_server import wire
from reward_server.client import RewardClient
from reward_server.errors import ConfigError, ScorerLoadError
from reward_server.launch import ServerProcess, launch_server
from reward_server.types import GroupScores
from reward_server.v1 import reward_pb2_grpc as pb_grpc
from tests.support.builders import make_group
from tests.support.processes import descendants, is_alive, wait_until
from tests.support.replicas import Load, lengths

pytestmark = pytest.mark.slow

FILE = Path(__file__).parents[2] / "support" / "misbehaving.py"
LENGTH = {"type": "length", "name": "short", "max": 3}

WHO = """
import asyncio
import os

async def f(completions, **_):
    for completion in completions:
        if completion.startswith("sleep "):
            await asyncio.sleep(float(completion.removeprefix("sleep ")))
    return [{value} + os.getpid()] * len(completions)
"""


class Served:
    """Two server processes of a function on their event loops that returns its process's pid."""

    def __init__(self, folder: Path):
        self.log = folder / "log"
        self.code = folder / "who.py"
        self.code.write_text(WHO.format(value=0))
        self.config = folder / "reward.json"
        scorers = [{"type": "function", "name": "who", "function": "who.py:f"}]
        self.config.write_text(json.dumps({"scorers": scorers, "processes": 2, "workers": 1, "drain_grace_s": 20}))

    def start(self) -> ServerProcess:
        self.server = launch_server(self.config, listen="127.0.0.1:0", log_path=self.log, timeout_s=60)
        return self.server

    @property
    def members(self) -> set[int]:
        return descendants(self.server.pid)

    def says(self, what: str) -> bool:
        return wait_until(lambda: re.search(what, self.log.read_text()) is not None, 20)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    made = Served(tmp_path)
    made.start()
    yield made
    made.server.stop(grace_s=0.5)


@pytest.fixture
def connect(served: Served) -> Iterator[Callable[[int], list[pb_grpc.RewardServiceStub]]]:
    """Opens connections, each of its own: channels of one process share one by default."""
    with ExitStack() as stack:

        def connections(count: int) -> list[pb_grpc.RewardServiceStub]:
            options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
            channels = [grpc.insecure_channel(served.server.endpoint, options) for _ in range(count)]
            return [pb_grpc.RewardServiceStub(stack.enter_context(channel)) for channel in channels]

        yield connections


def ask(stub: pb_grpc.RewardServiceStub, completion: str = "a") -> GroupScores:
    return wire.decode_scores(stub.ScoreGroup(wire.encode_group(make_group([completion], group_id="")), timeout=20))


def value(scores: GroupScores) -> float:
    [score] = scores.scorers[0].scores
    assert score.value is not None, score.message
    return score.value


def test_callers_are_dealt_out_to_all_processes(
    served: Served, connect: Callable[[int], list[pb_grpc.RewardServiceStub]]
) -> None:
    answers = [ask(stub) for stub in connect(24)]  # all at one of two: once in eight million runs
    assert {value(answer) for answer in answers} == served.members
    assert len({answer.config_digest for answer in answers}) == 1


def test_one_that_is_killed_is_replaced_and_retries_lose_nothing(tmp_path: Path) -> None:
    function = {"type": "function", "name": "f", "function": f"{FILE}:slow_async"}
    log = tmp_path / "log"
    with launch_server({"scorers": [function], "processes": 2}, listen="127.0.0.1:0", log_path=log) as server:
        members = descendants(server.pid)
        with RewardClient(server.endpoint, timeout_s=20) as client:
            load = Load(client, timeout_s=20).submit(10)
            for pid in members:  # one of them has the client
                load.submit(10)
                os.kill(pid, signal.SIGKILL)
                assert wait_until(lambda before=members: bool(descendants(server.pid) - before), 20)
                members = descendants(server.pid)
            load.submit(10).finish()
            assert not load.errors()
            assert not load.wrong(lengths)
        assert wait_until(lambda: len(descendants(server.pid)) == 2, 20)
        assert log.read_text().count("ended (SIGKILL, out of memory?) and is replaced") == 2


def test_sigterm_drains_all_of_them(served: Served, connect: Callable[[int], list[pb_grpc.RewardServiceStub]]) -> None:
    request = wire.encode_group(make_group(["sleep 1.5"], group_id=""))
    calls = [stub.ScoreGroup.future(request, timeout=20) for stub in connect(16)]
    time.sleep(0.5)
    members = served.members
    os.kill(served.server.pid, signal.SIGTERM)
    assert {value(wire.decode_scores(call.result())) for call in calls} == members
    assert wait_until(lambda: served.server.poll() is not None, 20)  # asked again, it would not wait for its last words
    assert served.server.poll() == 0
    assert not any(map(is_alive, members))


def test_a_service_managers_signal_to_all_processes_drains_once(
    served: Served, connect: Callable[[int], list[pb_grpc.RewardServiceStub]]
) -> None:
    request = wire.encode_group(make_group(["sleep 1"], group_id=""))
    calls = [stub.ScoreGroup.future(request, timeout=20) for stub in connect(4)]
    time.sleep(0.5)
    for pid in (served.server.pid, *served.members):
        os.kill(pid, signal.SIGTERM)
    assert all(value(wire.decode_scores(call.result())) for call in calls)
    assert served.server.stop() == 0


def test_a_second_signal_cuts_what_is_in_flight_in_all_of_them(
    served: Served, connect: Callable[[int], list[pb_grpc.RewardServiceStub]]
) -> None:
    request = wire.encode_group(make_group(["sleep 60"], group_id=""))
    calls = [stub.ScoreGroup.future(request, timeout=20) for stub in connect(8)]
    time.sleep(0.5)
    os.kill(served.server.pid, signal.SIGTERM)
    assert served.says("draining: [1-8] calls in flight")
    os.kill(served.server.pid, signal.SIGTERM)
    assert {call.exception().code() for call in calls} == {grpc.StatusCode.UNAVAILABLE}
    assert served.server.stop() == 1


def test_a_reload_takes_over_everywhere_or_nowhere(
    served: Served, connect: Callable[[int], list[pb_grpc.RewardServiceStub]]
) -> None:
    stubs, members = connect(16), served.members
    old = ask(stubs[0]).config_digest
    served.code.write_text("def f(:\n")
    os.kill(served.server.pid, signal.SIGHUP)
    assert served.says("(?s)the new configuration is refused, and .* serves on: .*SyntaxError")
    assert {ask(stub).config_digest for stub in stubs} == {old}
    served.code.write_text(WHO.format(value=10**7))
    os.kill(served.server.pid, signal.SIGHUP)
    assert served.says("(serves, in place of(?s:.*)){2}")
    assert {value(ask(stub)) for stub in stubs} == {10**7 + pid for pid in members}
    [new] = {ask(stub).config_digest for stub in stubs}
    assert new != old
    # And one that is started from now on has the new one.
    os.kill(min(members), signal.SIGKILL)
    assert wait_until(lambda: len(served.members - members) == 1, 20)
    assert wait_until(lambda: {value(ask(stub)) for stub in connect(16)} == {10**7 + pid for pid in served.members}, 20)


def test_code_that_takes_its_process_down_is_refused_and_the_others_serve_on(
    served: Served, connect: Callable[[int], list[pb_grpc.RewardServiceStub]]
) -> None:
    members, good = served.members, served.code.read_text()
    served.code.write_text(f"import os\nos._exit(7)\n{good}")
    os.kill(served.server.pid, signal.SIGHUP)
    assert served.says(r"is refused, and .* serves on: a server process died while loading the scorers \(exit code 7\)")
    assert served.says(r"a server process cannot be started again: .*exit code 7")
    assert {value(ask(stub)) for stub in connect(4)} <= members
    served.code.write_text(good)
    assert wait_until(lambda: len(served.members) == 2 and {value(ask(s)) for s in connect(16)} == served.members, 30)


def test_all_end_with_a_supervisor_that_is_killed(served: Served) -> None:
    members = served.members
    os.kill(served.server.pid, signal.SIGKILL)
    assert wait_until(lambda: not any(map(is_alive, members)), 5)


def test_a_port_that_somebody_has_is_refused_both_ways(served: Served) -> None:
    for processes in (1, 2):
        with pytest.raises(ConfigError, match=f"cannot listen on {served.server.endpoint}.*choose another port"):
            launch_server({"scorers": [LENGTH], "processes": processes}, listen=served.server.endpoint)
    with launch_server({"scorers": [LENGTH]}, listen="127.0.0.1:0") as other:
        with pytest.raises(ConfigError, match=f"cannot listen on {other.endpoint}"):
            launch_server({"scorers": [LENGTH], "processes": 2}, listen=other.endpoint)


def test_a_unix_socket_cannot_be_shared(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"processes = 2 cannot share unix:.*set processes to 1"):
        launch_server({"scorers": [LENGTH], "processes": 2}, listen=f"unix:{tmp_path}/s")


def test_what_cannot_be_loaded_ends_all_of_them(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("1 / 0\n")
    broken = {"type": "function", "name": "f", "function": f"{tmp_path}/broken.py:f"}
    before = descendants(os.getpid())
    with pytest.raises(ScorerLoadError, match="ZeroDivisionError"):
        launch_server({"scorers": [broken], "processes": 2}, listen="127.0.0.1:0")
    assert descendants(os.getpid()) == before


def test_one_metrics_page_adds_up_what_all_of_them_count(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    config = {"scorers": [LENGTH], "processes": 2, "metrics": {"listen": f"127.0.0.1:{port}"}}
    with launch_server(config, listen="127.0.0.1:0", log_path=tmp_path / "log") as server:
        options = [("grpc.use_local_subchannel_pool", 1)]
        for _ in range(24):
            with grpc.insecure_channel(server.endpoint, options) as channel:
                ask(pb_grpc.RewardServiceStub(channel))
        finished = 'reward_server_calls_finished_total{code="OK",method="ScoreGroup"}'
        assert wait_until(lambda: page(port).get(finished) == 24, 20)
        os.kill(min(descendants(server.pid)), signal.SIGKILL)
        assert wait_until(lambda: len(descendants(server.pid)) == 2, 20)
        assert page(port)[finished] == 24


def page(port: int) -> dict[str, float]:
    """The series of a page, by name and labels."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    series = (line.rpartition(" ") for line in lines if line and not line.startswith("#"))
    return {name: float(value) for name, _, value in series}
