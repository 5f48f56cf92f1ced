"""Reward functions and scorers that do to a server what user code does: hang, die, raise, print, and wait."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from reward_server.scorers.base import ExecutorKind, Result, Scorer, to_scores
from reward_server.types import Group, Score, Status


def obeys(completions: list[str], **_: Any) -> list[float]:
    """The length of each completion, unless one is a command."""
    for completion in completions:
        command, _, argument = completion.partition(" ")
        if command == "hang":
            time.sleep(600)
        elif command == "sleep":
            time.sleep(float(argument))
        elif command == "spin":  # keeps the interpreter's lock: a thread of the worker would never run again
            sum(range(10**12))
        elif command == "die":
            os._exit(3)
        elif command == "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        elif command == "exit":
            sys.exit("enough")
        elif command == "raise":
            raise TypeError("first line\nsecond line")
        elif command == "print":
            print("noise" * 1000)
            os.write(1, b"raw noise\n")
        elif command == "child":
            Path(argument).write_text(str(subprocess.Popen(["sleep", "600"]).pid))
            time.sleep(600)
    return [float(len(completion)) for completion in completions]


def once_a_call(completions: list[str], tally: list[str], **_: Any) -> list[float]:
    """Writes a line to the file that the column `tally` names, then takes half a second."""
    with open(tally[0], "a") as file:
        file.write("called\n")
    time.sleep(0.5)
    return [1.0] * len(completions)


async def slow_async(completions: list[str], **_: Any) -> list[float]:
    """`sleep S` waits; `raise` raises."""
    for completion in completions:
        if completion.startswith("sleep "):
            await asyncio.sleep(float(completion.removeprefix("sleep ")))
        elif completion == "raise":
            raise TypeError("first line\nsecond line")
    return [float(len(completion)) for completion in completions]


def kills_its_loader() -> Any:
    """A factory that takes the worker down while it loads."""
    os._exit(7)


class Threaded(Scorer):
    """In threads, two at a time; `sleep S` waits and `raise` raises."""

    place = ExecutorKind.THREAD
    concurrency = 2  # type: ignore[assignment]

    def score(self, group: Group) -> Result:
        return Result(to_scores(obeys([str(content) for content in group.contents()]), len(group)))


class Sloppy(Scorer):
    """A third party's: its answers are not what the protocol asks for. The prompt says how."""

    place = ExecutorKind.LOOP

    def score(self, group: Group) -> Any:
        ok = (Score(Status.OK, 1.0),) * len(group)
        return {
            "too few": Result(ok[:-1]),
            "no result": [1.0, 2.0],
            "nan": Result((Score(Status.OK, float("nan")), *ok[1:])),
            "numbers": Result((3.0, *ok[1:])),  # type: ignore[arg-type]
            "extra": Result(ok, {"m": 1.0, "n": "text"}, {"object": [object()] * len(group), "short": [1]}),  # type: ignore[dict-item]
        }[str(group.prompt)]


def make_waiting(seconds: float, notes: str | None = None) -> Any:
    """Scores the length after some seconds, and says which process did; writes `begun` and `cancelled` into `notes`."""

    def note(what: str) -> None:
        if notes is not None:
            with Path(notes).open("a") as file:
                file.write(f"{what}\n")

    async def waiting(completions: list[str], log_extra: Any, **_: Any) -> list[float]:
        note("begun")
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            note("cancelled")
            raise
        log_extra("pid", [os.getpid()] * len(completions))
        return [float(len(completion)) for completion in completions]

    return waiting
