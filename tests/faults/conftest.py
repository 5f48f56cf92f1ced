"""What every fault test has: replicas that can be killed, a proxy that can cut, the claims that all of them make."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from typing import Any

import pytest

from reward_server.client import RewardClient
from reward_server.launch import ServerProcess, launch_server
from reward_server.types import GroupScores, Score, Status
from tests.faults.proxy import Proxy
from tests.support.builders import make_group
from tests.support.processes import descendants, wait_until

SLACK_S = 2.0
"""How much later than its deadline a call may end, on two busy cores."""


@pytest.fixture(autouse=True)
def no_process_is_left() -> Iterator[None]:
    """After a test no process lives that it started, nor one that those started."""
    before = descendants(os.getpid())
    yield
    assert wait_until(lambda: not descendants(os.getpid()) - before, 10), descendants(os.getpid()) - before


class Replica:
    """A server that keeps its address over deaths."""

    def __init__(self, config: dict[str, Any], listen: str):
        self._config = config
        self.server = launch_server(config, listen=listen, timeout_s=60)
        self.endpoint = self.server.endpoint

    @property
    def pid(self) -> int:
        return self.server.pid

    def kill(self) -> None:
        """As kill -9 does; returns when it is dead."""
        os.kill(self.pid, signal.SIGKILL)
        self.server.stop()

    def freeze(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def start(self) -> None:
        self.server = launch_server(self._config, listen=self.endpoint, timeout_s=60)

    def stop(self) -> None:
        if self.server.poll() is None:
            self.thaw()
        self.server.stop()


Replicas = Callable[..., list[Replica]]


@pytest.fixture
def replicas(no_process_is_left: None) -> Iterator[Replicas]:
    """Starts `count` replicas of the given scorers, each on a port of its own."""
    started: list[Replica] = []

    def start(count: int, *scorers: dict[str, Any], **config: Any) -> list[Replica]:
        for _ in range(count):
            started.append(Replica({"scorers": list(scorers), "workers": 2, **config}, "127.0.0.1:0"))
        return started[-count:]

    yield start
    for replica in started:
        replica.stop()


@pytest.fixture
def server(no_process_is_left: None) -> Iterator[Callable[..., ServerProcess]]:
    """Starts a server of the given scorers on a unix socket."""
    started: list[ServerProcess] = []

    def start(*scorers: dict[str, Any], **config: Any) -> ServerProcess:
        started.append(launch_server({"scorers": list(scorers), "workers": 2, **config}, timeout_s=60))
        return started[-1]

    yield start
    for each in started:
        each.stop()


@pytest.fixture
def proxy() -> Iterator[Callable[[str], Proxy]]:
    """Puts a proxy before an endpoint."""
    proxies: list[Proxy] = []

    def before(endpoint: str) -> Proxy:
        proxies.append(Proxy(endpoint))
        return proxies[-1]

    yield before
    for each in proxies:
        each.close()


@dataclass
class Load:
    """Groups in flight, each of two completions of its own, and what became of them."""

    client: RewardClient
    timeout_s: float
    futures: dict[str, Future[GroupScores]] = field(default_factory=dict)
    ended_s: dict[str, float] = field(default_factory=dict)
    counted: list[str] = field(default_factory=list)

    def submit(self, count: int) -> Load:
        for number in range(len(self.futures), len(self.futures) + count):
            began = time.monotonic()
            name = f"group {number}"
            future = self.client.submit(
                make_group(["a" * number, "b" * (number + 1)], group_id=name), timeout_s=self.timeout_s
            )
            future.add_done_callback(lambda _, name=name, began=began: self._ended(name, began))
            self.futures[name] = future
        return self

    def _ended(self, name: str, began: float) -> None:
        self.ended_s[name] = time.monotonic() - began
        self.counted.append(name)

    def finish(self) -> Load:
        """Waits for all of them and claims that each ended once, by its deadline."""
        wait(self.futures.values(), timeout=self.timeout_s + SLACK_S)
        assert sorted(self.counted) == sorted(self.futures), "a group has no end, or two"
        assert self.longest_s <= self.timeout_s + SLACK_S
        return self

    @property
    def longest_s(self) -> float:
        return max(self.ended_s.values())

    def errors(self) -> dict[str, BaseException]:
        ends = {name: future.exception() for name, future in self.futures.items()}
        return {name: error for name, error in ends.items() if error is not None}

    def wrong(self, expected: Callable[[int], Sequence[float]]) -> list[str]:
        """The groups that were answered, and not with what they are worth: the first scorer's values of group n."""
        return [
            name
            for number, (name, future) in enumerate(self.futures.items())
            if future.exception() is None and values(future.result()) != list(expected(number))
        ]


def values(scores: GroupScores) -> list[float | None]:
    return [score.value for score in scores.scorers[0].scores]


def statuses(scores: GroupScores) -> list[Status]:
    return [score.status for score in scores.scorers[0].scores]


def outcome(scores: GroupScores) -> Sequence[Score]:
    return scores.scorers[0].scores


def lengths(number: int) -> list[float]:
    """What `length` and its slow relatives say of a Load's group."""
    return [float(number), float(number + 1)]
