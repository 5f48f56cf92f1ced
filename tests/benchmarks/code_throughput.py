"""Programs a second through the scorer `code`, beside a bare subprocess.run of the same programs.

    python tests/benchmarks/code_throughput.py [--programs 48] [--rounds 5]

A batch has as many tests by input as calls by name and asserts, in turn. Each program computes for a while, which is
measured in processor time, so that it is as much work on a busy machine. Its length is what a bare run of it takes
alone, the interpreter's own start included. Bare: as many threads as processors, each `python -I -S -B -c` with the
program and, instead of a test, a line that calls it. Both take turns in rounds, and the ratios are medians over the
rounds: of the time by the clock, and of the processor time that all processes took, which other loads change less. The
aim is 1.5 for programs of 50 ms and more. The fixed cost is the processor time that a run takes beyond the bare one's.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from reward_server.sandbox.backends import BACKENDS
from reward_server.scorers.code import CodeScorer
from reward_server.scorers.registry import build, parse_options
from reward_server.types import Group
from tests.support.processes import descendants

Seconds = tuple[float, float]
"""By the clock, and of processor time."""

LENGTHS_MS = (0, 50, 100)
START_MS = 10  # of an interpreter
PYTHON = (os.path.realpath(sys.executable), "-I", "-S", "-B")
CORES = len(os.sched_getaffinity(0))
WORK = """
import time

def add_one(x):
    began = time.process_time()
    while time.process_time() - began < {seconds}:
        pass
    return x + 1
"""


@dataclass(frozen=True)
class Kind:
    """One kind of tests: the tests of a column, and the line that makes a whole script of the program."""

    name: str
    tests: Any
    line: str
    is_script: bool = False


KINDS = (
    Kind("by input", {"inputs": ["41\n"], "outputs": ["42"]}, "print(add_one(int(input())))", is_script=True),
    Kind("by name", {"fn_name": "add_one", "inputs": [[41]], "outputs": [42]}, "print(add_one(41))"),
    Kind("by assert", ["assert add_one(41) == 42"], "assert add_one(41) == 42"),
)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--programs", type=int, default=48, help="in a batch")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    for name, backend in BACKENDS.items():
        if name != "none" and backend.missing() is None:
            asyncio.run(measure(name, arguments.programs, arguments.rounds))
    print(f"load of this machine: {os.getloadavg()[0]:.1f} on {CORES} processors")


async def measure(sandbox: str, programs: int, rounds: int) -> None:
    options = {"type": "code", "name": "code", "sandbox": sandbox, "extract": "auto", "parallel": CORES}
    scorer = build(parse_options(options))
    assert isinstance(scorer, CodeScorer)
    await scorer.load()
    columns = ("tests", "programs/s", "bare", "ratio", "CPU ratio", "fixed cost")
    print(f"{sandbox:<12}", *(f"{column:>12}" for column in columns))
    for length_ms in LENGTHS_MS:
        for kinds in (KINDS, *((kind,) for kind in KINDS)):
            pairs = await rounds_of(scorer, kinds, length_ms, programs, rounds)
            wall, cpu = (statistics.median(ours[n] / bare[n] for ours, bare in pairs) for n in (0, 1))
            fixed_ms = statistics.median((ours[1] - bare[1]) / programs * 1e3 for ours, bare in pairs)
            rates = (programs / statistics.median(pair[n][0] for pair in pairs) for n in (0, 1))
            values = (*(f"{rate:.1f}" for rate in rates), f"{wall:.2f}", f"{cpu:.2f}", f"{fixed_ms:.0f} ms")
            name = kinds[0].name if len(kinds) == 1 else "mixed"
            print(
                f"{max(length_ms, START_MS)} ms".ljust(12), *(f"{value:>12}" for value in (name, *values)), flush=True
            )
    await scorer.close()


async def rounds_of(
    scorer: CodeScorer, kinds: Sequence[Kind], length_ms: int, programs: int, rounds: int
) -> list[tuple[Seconds, Seconds]]:
    """What a batch takes, for each round: ours and the bare one."""
    work = WORK.format(seconds=max(length_ms - START_MS, 0) / 1e3)
    batch = [kinds[index % len(kinds)] for index in range(programs)]
    texts = [work + (kind.line if kind.is_script else "") for kind in batch]
    group = Group.of_rows(["p"] * programs, texts, columns=[{"tests": kind.tests} for kind in batch])
    scripts = [work + kind.line for kind in batch]
    await ours(scorer, group)  # starts the runners and their hosts
    return [(await ours(scorer, group), await asyncio.to_thread(bare, scripts)) for _ in range(rounds)]


async def ours(scorer: CodeScorer, group: Group) -> Seconds:
    began, began_cpu = time.perf_counter(), cpu_s()
    result = await scorer.score(group)
    seconds = time.perf_counter() - began, cpu_s() - began_cpu
    assert all(score.value == 1.0 for score in result.scores), result
    return seconds


def cpu_s() -> float:
    """Processor time of this process and of all below it, those that have ended included."""
    ticks = 0
    for pid in (os.getpid(), *descendants(os.getpid())):
        with contextlib.suppress(OSError):  # ended meanwhile: its parent has it
            ticks += sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def bare(scripts: Sequence[str]) -> Seconds:
    began, began_cpu = time.perf_counter(), cpu_s()
    with ThreadPoolExecutor(CORES) as threads:
        list(threads.map(run, scripts))
    return time.perf_counter() - began, cpu_s() - began_cpu


def run(script: str) -> None:
    subprocess.run([*PYTHON, "-c", script], input=b"41\n", stdout=subprocess.DEVNULL, check=True)


if __name__ == "__main__":
    main()
