"""Replicas that can be killed, frozen and started again, and a load of groups with the claims of every fault."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from typing import Any

from reward_server.client import RewardClient
from reward_server.launch import launch_server
from reward_server.types import Group, GroupScores, Score, Status
from tests.support.builders import make_group

SLACK_S = 2.0
"""How much later than its deadline a call may end, on two busy cores."""


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


@dataclass
class Load:
    """Groups in flight, each of two completions of its own, and what became of them."""

    client: RewardClient
    timeout_s: float
    futures: dict[str, Future[GroupScores]] = field(default_factory=dict)
    ended_s: dict[str, float] = field(default_factory=dict)
    counted: list[str] = field(default_factory=list)

    def submit(self, count: int) -> Load:
        """Sends so many groups, each in a call of its own."""
        for number in self._next(count):
            self._follow(number, time.monotonic(), self.client.submit(self._group(number), timeout_s=self.timeout_s))
        return self

    def submit_all(self, count: int) -> Load:
        """Sends so many groups at once, which share calls."""
        numbers, began = self._next(count), time.monotonic()
        sent = self.client.submit_all([self._group(number) for number in numbers], timeout_s=self.timeout_s)
        for number, future in zip(numbers, sent, strict=True):
            self._follow(number, began, future)
        return self

    def _next(self, count: int) -> range:
        return range(len(self.futures), len(self.futures) + count)

    def _group(self, number: int) -> Group:
        return make_group(["a" * number, "b" * (number + 1)], group_id=f"group {number}")

    def _follow(self, number: int, began: float, future: Future[GroupScores]) -> None:
        name = f"group {number}"
        future.add_done_callback(lambda _: self._ended(name, began))
        self.futures[name] = future

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
