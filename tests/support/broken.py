"""Reward functions that misbehave, each in one way. A completion says itself whether it is the one that does harm."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.scoring import text_of


def length(completions: list[Any], **_: Any) -> list[float]:
    return [float(len(text_of(completion))) for completion in completions]


def make_slow_length(seconds: float, seen: str | None = None) -> Callable[..., list[float]]:
    """Scores the length after some seconds; writes a line into the file `seen` for each group that it begins."""

    def slow_length(completions: list[Any], **_: Any) -> list[float]:
        if seen is not None:
            with Path(seen).open("a") as file:
                file.write(f"{len(text_of(completions[0]))}\n")
        time.sleep(seconds)
        return length(completions)

    return slow_length


def _each(harm: Callable[[], Any]) -> Callable[..., list[Any]]:
    """The length of each completion, and what `harm` does or returns for one that says "bad"."""

    def scored(completions: list[Any], **_: Any) -> list[Any]:
        return [harm() if text_of(x) == "bad" else float(len(text_of(x))) for x in completions]

    return scored


def _raise() -> None:
    raise ValueError("this one is bad")


def _hang() -> None:
    time.sleep(3600)


def _exit() -> None:
    os._exit(7)


def _sys_exit() -> None:
    raise SystemExit(7)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _segfault() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def _eat() -> float:
    eaten = []
    while True:
        eaten.append(bytearray(16 << 20))


raises = _each(_raise)
hangs = _each(_hang)
exits = _each(_exit)
sys_exits = _each(_sys_exit)
dies = _each(_die)
segfaults = _each(_segfault)
eats_memory = _each(_eat)
nan = _each(lambda: float("nan"))
infinity = _each(lambda: float("inf"))
minus_infinity = _each(lambda: float("-inf"))
string = _each(lambda: "0.5")
nested = _each(lambda: [0.5])


def too_few(completions: list[Any], **_: Any) -> list[float]:
    return [0.5] * (len(completions) - 1)


def too_many(completions: list[Any], **_: Any) -> list[float]:
    return [0.5] * (len(completions) + 1)


def all_strings(completions: list[Any], **_: Any) -> str:
    return "0" * len(completions)


def make_poison(tries: str) -> Callable[..., list[float]]:
    """Kills its worker for a completion "bad", each time, and writes a line into the file `tries` before."""

    def poison(completions: list[Any], **_: Any) -> list[float]:
        if any(text_of(completion) == "bad" for completion in completions):
            with Path(tries).open("a") as file:
                file.write(f"{len(completions)}\n")
            os.kill(os.getpid(), signal.SIGKILL)
        return length(completions)

    return poison


def make_jumping_clock(jump_s: float) -> Callable[..., Any]:
    """Steps the wall clock of its own process (the server's, on the loop) at each group, forth and back."""
    real, state = time.time, {"offset_s": jump_s}

    async def jumping(completions: list[Any], **_: Any) -> list[float]:
        state["offset_s"] = -state["offset_s"]
        time.time = lambda: real() + state["offset_s"]  # type: ignore[assignment]
        time.time_ns = lambda: int(time.time() * 1e9)  # type: ignore[assignment]
        return length(completions)

    return jumping


def make_deaf_loop(seconds: float, started: str | None = None) -> Callable[..., Any]:
    """Blocks the server's event loop, as an async function does that forgets to wait."""

    async def deaf(completions: list[Any], **_: Any) -> list[float]:
        if started is not None:
            Path(started).touch()  # noqa: ASYNC240
        time.sleep(seconds)  # noqa: ASYNC251 - the fault itself
        return length(completions)

    return deaf
