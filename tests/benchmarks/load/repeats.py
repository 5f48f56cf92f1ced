"""Part (d): what the cache saves on repeats, and what it costs where nothing repeats or scoring is next to free.

Every server is a process of its own with one worker. Each round sends texts that no round before had, in passes: all of
them for the first time; the same again; groups of which half the completions are known; and one group from all callers
at once. A replica that shares the file of `disk` gets them after it. The targets take turns; times are medians over the
rounds, hit rates what the servers have counted by their end. "CPU" is the processor time that the server's process, its
worker's left out, spends on a group: what is left when the machine is busy.
"""

from __future__ import annotations

import asyncio
import os
import re
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from reward_server.client import AsyncRewardClient
from reward_server.launch import launch_server
from reward_server.types import Group
from tests.benchmarks.load.settings import Settings, table

GROUPS = 30
SIZE = 8
DEADLINE_S = 120.0

SCORERS = {
    "math": {"type": "math", "name": "scorer", "column": "answer"},
    "length": {"type": "length", "name": "scorer", "max": 500},
}
CACHES: dict[str, Any] = {"off": False, "memory": True, "disk": {}, "replica": {}}
"""`disk` and `replica` share a file, and `replica` comes after `disk`."""


class Target:
    """A server of one scorer and one kind of cache."""

    def __init__(self, scorer: str, cache: str, folder: Path, stack: ExitStack):
        setting = {"path": str(folder / f"{scorer}.sqlite")} if CACHES[cache] == {} else CACHES[cache]
        self.scorer, self.cache = scorer, cache
        self._log = folder / f"{scorer}-{cache}.log"
        config = {"scorers": [SCORERS[scorer]], "workers": 1, "cache": setting}
        self._server = stack.enter_context(launch_server(config, log_path=self._log))
        self.ms: defaultdict[str, list[float]] = defaultdict(list)
        self.cpu_ms: defaultdict[str, list[float]] = defaultdict(list)

    async def turn(self, number: int, callers: int) -> None:
        known, fresh = texts(f"known {number}"), texts(f"fresh {number}")
        half = [[*a[: SIZE // 2], *b[SIZE // 2 :]] for a, b in zip(known, fresh, strict=True)]
        herd = [texts(f"herd {number}")[0]] * callers
        async with AsyncRewardClient(self._server.endpoint) as client:
            for name, groups in (("first", known), ("again", known), ("half", half), ("herd", herd)):
                began_s = cpu_s(self._server.pid)
                self.ms[name].append(await timed(client, groups, callers))
                self.cpu_ms[name].append(1e3 * (cpu_s(self._server.pid) - began_s) / len(groups))

    def hit_rate(self) -> str:
        """Of all completions that were asked for. Known once the server has ended."""
        found = re.search(r"hits=(\d+), disk_hits=(\d+), shared=(\d+), misses=(\d+)", self._log.read_text())
        if found is None:
            return "-"
        hits, _, shared, misses = map(int, found.groups())
        return f"{(hits + shared) / (hits + shared + misses):.0%}"


def cpu_s(pid: int) -> float:
    """Processor time of a process, its children's not counted."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


def texts(what: str) -> list[list[str]]:
    """GROUPS × SIZE worked solutions of some 400 characters, all different."""
    step = "Then we take what is left and share it out evenly among them, which changes nothing. "
    return [
        [
            f"{what}: {group}/{index}. {step * 4}So it is \\boxed{{{group}+\\frac{{{index}}}{{7}}}}"
            for index in range(SIZE)
        ]
        for group in range(GROUPS)
    ]


async def timed(client: AsyncRewardClient, groups: Sequence[Sequence[str]], callers: int) -> float:
    """Milliseconds a group, with so many in flight."""
    free = asyncio.Semaphore(callers)

    async def ask(number: int, contents: Sequence[str]) -> None:
        group = Group.of_rows(["How many?"] * SIZE, contents, columns=[{"answer": "7"}] * SIZE, group_id=f"{number}")
        async with free:
            scores = await client.score(group, timeout_s=DEADLINE_S)
        assert all(score.value is not None for score in scores.scorers[0].scores)

    began = time.perf_counter()
    await asyncio.gather(*(ask(number, contents) for number, contents in enumerate(groups)))
    return 1e3 * (time.perf_counter() - began) / len(groups)


def run(settings: Settings) -> None:
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        with ExitStack() as stack:
            targets = [Target(scorer, cache, Path(folder), stack) for scorer in SCORERS for cache in CACHES]
            for number in range(settings.rounds):
                for target in targets:
                    asyncio.run(target.turn(number, settings.callers))
        report(targets, settings)


def report(targets: Sequence[Target], settings: Settings) -> None:
    medians = {(t.scorer, t.cache): {name: statistics.median(ms) for name, ms in t.ms.items()} for t in targets}
    print(f"{settings.callers} callers, {GROUPS} groups of {SIZE}, one worker; milliseconds a group")
    passes = {"first": "first time", "again": "again", "half": "half known", "herd": "one group, all callers"}
    rows = [
        [
            t.scorer,
            t.cache,
            *(f"{medians[t.scorer, t.cache][name]:.2f}" for name in passes),
            *(f"{statistics.mean(t.cpu_ms[name]):.2f}" for name in ("first", "again")),
            t.hit_rate(),
        ]
        for t in targets
    ]
    table(["scorer", "cache", *passes.values(), "CPU first", "CPU again", "hit rate"], rows)
    off, memory, replica = (medians["math", cache] for cache in ("off", "memory", "replica"))
    print(
        f"Scoring again takes {off['again'] / memory['again']:.0f} × the time of a repeat of math, and "
        f"{off['first'] / replica['first']:.0f} × that of one which another replica has scored; with the cache the "
        f"first time takes {memory['first'] / off['first']:.2f} × what it takes without."
    )
