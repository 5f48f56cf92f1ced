"""A scorer that does nothing but compute: groups a second with one and with two worker processes, and with one and two
server processes. `workers` is for synchronous scorers, `processes` for what runs on the event loop.

Every group is 8 completions of about 5 ms of computing each. Each caller has a connection of its own, as ranks have,
and sends its next group when it has the scores of the last. The aim is 1.8 × with two.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc.aio

from load.settings import Settings, table
from reward_server import wire
from reward_server.launch import launch_server
from reward_server.scorers.base import Place, Result, Scorer
from reward_server.types import Completion, Group, Score, Status
from reward_server.v1 import reward_pb2_grpc as pb_grpc

AIM = 1.8
GROUP = Group("p" * 100, tuple(Completion(chr(97 + index) * 1000) for index in range(8)), run_id="bench")
ROUNDS_OF_ONE = 40_000  # about 5 ms of an interpreter's time

TARGETS = {"workers": "InWorkers", "processes": "OnLoop"}


class InWorkers(Scorer):
    """Computes, in the worker processes."""

    place = Place.WORKER

    def score(self, group: Group) -> Result:
        return Result(tuple(Score(Status.OK, _computed(len(text))) for text in group.contents()))


class OnLoop(InWorkers):
    """Computes, on the event loop of a server process."""

    place = Place.LOOP


def _computed(seed: int) -> float:
    value = seed
    for _ in range(ROUNDS_OF_ONE):
        value = (value * 1103515245 + 12345) & 0x7FFFFFFF
    return value / 0x7FFFFFFF


def run(settings: Settings) -> None:
    """Prints a row for workers and one for processes."""
    with ExitStack() as stack:
        endpoints = {
            (name, count): stack.enter_context(
                launch_server(_config(name, count), listen="127.0.0.1:0", timeout_s=120)
            ).endpoint
            for name in TARGETS
            for count in (1, 2)
        }
        rates = asyncio.run(_measure(endpoints, settings))
    print(f"load average of the machine meanwhile: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    table(
        ("", "1: groups/s", "2: groups/s", "median of the rounds' ratios", f"aim {AIM}"),
        [_row(name, rates[name, 1], rates[name, 2]) for name in TARGETS],
    )


def _config(name: str, count: int) -> dict[str, Any]:
    scorer = {"type": f"{Path(__file__)}:{TARGETS[name]}", "name": "computes"}
    return {"scorers": [scorer], "workers": 1, name: count}


def _row(name: str, one: list[float], two: list[float]) -> tuple[str, ...]:
    ratio = statistics.median(b / a for a, b in zip(one, two, strict=True))
    medians = [f"{statistics.median(rates):.1f}" for rates in (one, two)]
    return (name, *medians, f"{ratio:.2f}", "reached" if ratio >= AIM else "missed")


async def _measure(endpoints: dict[tuple[str, int], str], settings: Settings) -> dict[tuple[str, int], list[float]]:
    rates: dict[tuple[str, int], list[float]] = {target: [] for target in endpoints}
    for turn in range(settings.rounds + 1):
        for target, endpoint in endpoints.items():
            rate = await _rate(endpoint, settings.callers, settings.seconds)
            if turn:  # the first warms up
                rates[target].append(rate)
    return rates


async def _rate(endpoint: str, callers: int, seconds: float) -> float:
    """Groups a second of all callers, from when they are all connected."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.aio.insecure_channel(endpoint, options=options) for _ in range(callers)]
    try:
        await asyncio.gather(*(channel.channel_ready() for channel in channels))
        began = time.perf_counter()
        counts = await asyncio.gather(*(_calls(channel, began + seconds) for channel in channels))
        return sum(counts) / seconds
    finally:
        await asyncio.gather(*(channel.close() for channel in channels))


async def _calls(channel: grpc.aio.Channel, end: float) -> int:
    """How many groups one caller gets back before the end; the one that it waits for then is given up."""
    score, request, count = pb_grpc.RewardServiceStub(channel).ScoreGroup, wire.encode_group(GROUP), 0
    while (left_s := end - time.perf_counter()) > 0:
        call = score(request)
        done, _ = await asyncio.wait({asyncio.ensure_future(_answer(call))}, timeout=left_s)
        if not done:
            call.cancel()
            break
        count += 1
    return count


async def _answer(call: Any) -> None:
    scores = wire.decode_scores(await call)
    assert all(score.status is Status.OK for score in scores.scorers[0].scores)
