"""A scorer that does nothing but compute: groups a second with one and with two worker processes, and with one and two
server processes. `workers` is for synchronous scorers, `processes` for what runs on the event loop.

Every group is 8 completions of about 5 ms of computing each. Each caller has a connection of its own, as ranks have,
and sends its next group when it has the scores of the last. The aim is 1.8 × with two, on two cores that nobody else
uses. "cpu" is the processor time that the server and its children spent on a group: what is left where others do.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import grpc.aio

from reward_server import wire
from reward_server.launch import ServerProcess, launch_server
from reward_server.scorers.base import ExecutorKind, Result, Scorer
from reward_server.types import Completion, Group, Score, Status
from reward_server.v1 import reward_pb2_grpc as pb_grpc
from tests.benchmarks.load.settings import Settings, table

AIM = 1.8
GROUP = Group("p" * 100, tuple(Completion(chr(97 + index) * 1000) for index in range(8)), run_id="bench")
ROUNDS_OF_ONE = 40_000  # about 5 ms of an interpreter's time

SCORERS = {"workers": "InWorkers", "processes": "OnLoop"}


class InWorkers(Scorer):
    """Computes, in the worker processes."""

    place = ExecutorKind.WORKER

    def score(self, group: Group) -> Result:
        return Result(tuple(Score(Status.OK, _computed(len(text))) for text in group.contents()))


class OnLoop(InWorkers):
    """Computes, on the event loop of a server process."""

    place = ExecutorKind.LOOP


def _computed(seed: int) -> float:
    value = seed
    for _ in range(ROUNDS_OF_ONE):
        value = (value * 1103515245 + 12345) & 0x7FFFFFFF
    return value / 0x7FFFFFFF


@dataclass
class Target:
    """A server, and what its turns gave: groups a second, and processor milliseconds a group."""

    server: ServerProcess
    rates: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)


def run(settings: Settings) -> None:
    """Prints a row for workers and one for processes."""
    with ExitStack() as stack:
        targets = {
            (name, count): Target(stack.enter_context(_server(name, count))) for name in SCORERS for count in (1, 2)
        }
        asyncio.run(_measure(list(targets.values()), settings))
    print(f"load average of the machine meanwhile: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    table(
        ("", "1: groups/s", "cpu ms", "2: groups/s", "cpu ms", "ratio, median of rounds", f"aim {AIM}"),
        [_row(name, targets[name, 1], targets[name, 2]) for name in SCORERS],
    )


def _server(name: str, count: int) -> ServerProcess:
    scorer = {"type": f"{Path(__file__)}:{SCORERS[name]}", "name": "computes"}
    return launch_server({"scorers": [scorer], "workers": 1, name: count}, listen="127.0.0.1:0", timeout_s=120)


def _row(name: str, one: Target, two: Target) -> tuple[str, ...]:
    ratio = statistics.median(b / a for a, b in zip(one.rates, two.rates, strict=True))
    cells = [(f"{statistics.median(t.rates):.1f}", f"{statistics.median(t.cpu_ms):.1f}") for t in (one, two)]
    return (name, *cells[0], *cells[1], f"{ratio:.2f}", "reached" if ratio >= AIM else "missed")


async def _measure(targets: list[Target], settings: Settings) -> None:
    for turn in range(settings.rounds + 1):
        for target in targets:
            before_s = _cpu_s(target.server.pid)
            scored, seconds = await _turn(target.server.endpoint, settings.callers, settings.seconds)
            if turn:  # the first warms up
                target.rates.append(scored / seconds)
                target.cpu_ms.append(1000 * (_cpu_s(target.server.pid) - before_s) / scored)


async def _turn(endpoint: str, callers: int, seconds: float) -> tuple[int, float]:
    """How many groups the callers got back, and in how many seconds, from when they were all connected."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.aio.insecure_channel(endpoint, options=options) for _ in range(callers)]
    try:
        await asyncio.gather(*(channel.channel_ready() for channel in channels))
        began = time.perf_counter()
        counts = await asyncio.gather(*(_calls(channel, began + seconds) for channel in channels))
        return sum(counts), time.perf_counter() - began
    finally:
        await asyncio.gather(*(channel.close() for channel in channels))


async def _calls(channel: grpc.aio.Channel, end: float) -> int:
    """How many groups one caller gets back that it sent before the end."""
    score, request, count = pb_grpc.RewardServiceStub(channel).ScoreGroup, wire.encode_group(GROUP), 0
    while time.perf_counter() < end:
        scores = wire.decode_scores(await score(request, timeout=120))
        assert all(score.status is Status.OK for score in scores.scorers[0].scores)
        count += 1
    return count


def _cpu_s(pid: int) -> float:
    """Processor seconds of a process and the children that it has now, theirs included."""
    fields: dict[int, list[str]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields[int(stat.parent.name)] = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended meanwhile
            continue

    def ticks(pid: int) -> int:
        own = int(fields[pid][11]) + int(fields[pid][12])
        return own + sum(ticks(child) for child, of_child in fields.items() if int(of_child[1]) == pid)

    return ticks(pid) / os.sysconf("SC_CLK_TCK")
