"""What a sandbox costs: milliseconds for a program that does next to nothing, alone, one run after another.

    python tests/benchmarks/sandbox_overhead.py

By input: one process a run. By test: two, the program's and the test's. `plain` is the interpreter alone, started by
subprocess with the same flags. By the clock (medians) and of processor time, which other loads change less. Sandboxes
that this machine has not are left out.
"""

from __future__ import annotations

import asyncio
import os
import resource
import statistics
import subprocess
import sys
import time

from reward_server.sandbox.backends import BACKENDS
from reward_server.sandbox.pool import Runners
from reward_server.sandbox.runs import End, Limits, Plan, Run

RUNS = 30
PYTHON = (os.path.realpath(sys.executable), "-I", "-S", "-B")
LIMITS = Limits(4, 512 << 20, 1, 64, 1 << 20, 16 << 20)
BY_INPUT = Run("print(int(input()) + 1)", stdin="41\n")
BY_TEST = Run("def f(x):\n    return x + 1", test="assert f(41) == 42")


def main() -> None:
    print(f"{'':<12}{'first run':>12}{'by input':>22}{'by test':>22}")
    wall, cpu = plain_ms()
    print(f"{'plain':<12}{'':>12}{f'{wall:.0f} ms, CPU {cpu:.0f}':>22}")
    for name, backend in BACKENDS.items():
        if backend.missing() is None:
            first, by_input, by_test = asyncio.run(measured(name))
            cpus = [cpu_ms(name, run) for run in (BY_INPUT, BY_TEST)]
            columns = [f"{wall:.0f} ms, CPU {cpu:.0f}" for wall, cpu in zip((by_input, by_test), cpus, strict=True)]
            print(f"{name:<12}{f'{first:.0f} ms':>12}{columns[0]:>22}{columns[1]:>22}")
    print(f"load of this machine: {os.getloadavg()[0]:.1f} on {len(os.sched_getaffinity(0))} processors")


def plain_ms() -> tuple[float, float]:
    """By the clock and of processor time."""
    times, began_cpu = [], children_s()
    for _ in range(RUNS):
        began = time.perf_counter()
        subprocess.run([*PYTHON, "-c", BY_INPUT.program], input=b"41\n", stdout=subprocess.DEVNULL, check=True)
        times.append(time.perf_counter() - began)
    return statistics.median(times) * 1e3, (children_s() - began_cpu) / RUNS * 1e3


async def measured(backend: str) -> tuple[float, float, float]:
    """Of the first run, which starts a runner, and of the others."""
    runners = Runners(Plan(backend, PYTHON, (sys.base_prefix,), LIMITS), 1)
    try:
        first = await median_ms(runners, BY_INPUT, 1)
        return first, await median_ms(runners, BY_INPUT, RUNS), await median_ms(runners, BY_TEST, RUNS)
    finally:
        await runners.close()


async def median_ms(runners: Runners, run: Run, count: int) -> float:
    seconds = []
    for _ in range(count):
        began = time.perf_counter()
        async with runners.lease() as runner:
            assert (await runner.ask(run)).end in (End.EXITED, End.PASSED)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds) * 1e3


def cpu_ms(backend: str, run: Run) -> float:
    """Processor time of a run, whoever uses it outside this process: what another load does not change."""
    return (cpu_s(backend, run, RUNS + 1) - cpu_s(backend, run, 1)) / RUNS * 1e3


def cpu_s(backend: str, run: Run, count: int) -> float:
    async def runs() -> None:
        runners = Runners(Plan(backend, PYTHON, (sys.base_prefix,), LIMITS), 1)
        await median_ms(runners, run, count)
        await runners.close()

    began = children_s()
    asyncio.run(runs())
    return children_s() - began


def children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
