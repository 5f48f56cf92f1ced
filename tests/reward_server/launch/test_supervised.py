"""A supervised server: started again where it was when it dies, and never left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reward_server.client import RewardClient
from reward_server.errors import ConfigError
from reward_server.launch import SupervisedServer, launch_supervised
from reward_server.processes.restarts import pause_s
from tests.support.builders import make_group
from tests.support.processes import descendants, is_alive, wait_until
from tests.support.servers import function


@pytest.fixture
def supervised() -> Iterator[Any]:
    servers: list[SupervisedServer] = []

    def start(*scorers: dict[str, Any]) -> SupervisedServer:
        servers.append(launch_supervised({"scorers": list(scorers), "workers": 1}, timeout_s=60))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


def test_the_first_restart_is_at_once_the_next_wait_longer_and_there_are_five_a_minute() -> None:
    assert pause_s([], now=100.0) == 0.0
    assert [pause_s([99.0] * n, now=100.0) for n in (1, 2, 3, 4)] == [0.5, 1.0, 2.0, 4.0]
    assert pause_s([50.0, 60.0, 70.0, 80.0, 90.0], now=100.0) == 10.0  # until the first is a minute ago
    assert pause_s([1.0, 2.0, 3.0, 4.0, 5.0], now=100.0) == 0.0


@pytest.mark.slow
def test_a_server_that_dies_is_back_at_the_same_address_and_answers_what_was_in_flight(
    supervised: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLOW_S", "0.4")
    server = supervised(function("slow"))
    endpoint, first = server.endpoint, server.pid
    with RewardClient(endpoint, timeout_s=30) as client:
        client.connect(10)
        pending = [client.submit(make_group(["ab"], group_id=str(number))) for number in range(3)]
        time.sleep(0.2)
        os.kill(first, signal.SIGKILL)
        assert [p.result(30).scorers[0].scores[0].value for p in pending] == [1 / 3] * 3
    assert server.restarts == 1
    assert server.endpoint == endpoint
    assert server.pid != first


def test_after_stop_nothing_is_started_again_and_nothing_is_left(supervised: Any) -> None:
    others = set(descendants(os.getpid()))
    server = supervised(function("vowels"))
    children = set(descendants(os.getpid())) - others
    folder = Path(server.endpoint.removeprefix("unix:")).parent
    assert server.stop() == 0
    assert server.restarts == 0
    assert wait_until(lambda: not any(map(is_alive, children)), 5)
    assert not folder.exists()
    assert server.stop() == 0  # again does no harm


@pytest.mark.slow
def test_stop_during_a_restart_does_not_wait_for_it(supervised: Any) -> None:
    others = set(descendants(os.getpid()))
    server = supervised(function("vowels"))
    os.kill(server.pid, signal.SIGKILL)
    assert wait_until(lambda: server.restarts == 1, 5)
    began = time.monotonic()
    server.stop()
    assert time.monotonic() - began < 3.0
    assert not [t for t in threading.enumerate() if t.name == "reward server watcher"]
    assert wait_until(lambda: not set(descendants(os.getpid())) - others, 5)


def test_what_cannot_start_at_first_raises_and_is_not_tried_again() -> None:
    with pytest.raises(ConfigError, match="scorers"):
        launch_supervised({"scorers": []}, timeout_s=60)
    assert not [t for t in threading.enumerate() if t.name == "reward server watcher"]


OWNER = """
import sys, threading
from reward_server.launch import launch_supervised
server = launch_supervised({config!r}, timeout_s=60)
print(server.pid, flush=True)
{then}
"""


@pytest.mark.slow
@pytest.mark.parametrize("then", ["threading.Event().wait()", "raise SystemExit(3)"])
def test_the_server_ends_within_5_s_of_its_owner_however_that_ends(then: str) -> None:
    config = {"scorers": [function("vowels")], "workers": 1}
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER.format(config=config, then=then)], stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None
    pid = int(owner.stdout.readline())
    children = [pid, *descendants(pid)]
    if "wait" in then:
        owner.kill()
    assert owner.wait(10) == (-9 if "wait" in then else 3)
    assert wait_until(lambda: not any(map(is_alive, children)), 5)
    owner.stdout.close()


BLOCKED = """
import sys
sys.path.insert(0, {root!r})
from tests.support.builders import make_group
from reward_server.client import RewardClient
from reward_server.launch import launch_supervised
server = launch_supervised({config!r}, timeout_s=60)
pending = RewardClient(server.endpoint).submit(make_group(["a"]))
print(server.pid, flush=True)
pending.exception()
"""


@pytest.mark.slow
def test_a_server_whose_event_loop_is_blocked_ends_within_5_s_of_its_owner_too(tmp_path: Path) -> None:
    root = Path(__file__).parents[3]
    started = tmp_path / "started"
    deaf = function("deaf", function=f"{root}/tests/support/broken.py:make_deaf_loop", factory=True, place="loop")
    config = {"scorers": [{**deaf, "kwargs": {"seconds": 60, "started": str(started)}}], "workers": 1}
    owner = subprocess.Popen(
        [sys.executable, "-c", BLOCKED.format(root=str(root), config=config)], stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None
    pid = int(owner.stdout.readline())
    assert wait_until(started.exists, 10)
    owner.kill()
    owner.wait(10)
    assert wait_until(lambda: not is_alive(pid), 5)
    owner.stdout.close()
