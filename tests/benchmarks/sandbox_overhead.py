"""What a sandbox costs: milliseconds for a program that does next to nothing, alone, one run after another.

    python tests/benchmarks/sandbox_overhead.py

By input: one process a run. By test: two, the program's and the test's. `plain` is the interpreter alone, started by
subprocess with the same flags. Medians; sandboxes that this machine has not are left out.
"""

from __future__ import annotations

import asyncio
import os
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
    print(f"{'sandbox':<12}{'start, ms':>12}{'by input, ms':>15}{'by test, ms':>14}")
    print(f"{'plain':<12}{'':>12}{plain_ms():>15.1f}")
    for name, backend in BACKENDS.items():
        if backend.missing() is None:
            start, by_input, by_test = asyncio.run(measured(name))
            print(f"{name:<12}{start:>12.0f}{by_input:>15.1f}{by_test:>14.1f}")


def plain_ms() -> float:
    times = []
    for _ in range(RUNS):
        began = time.perf_counter()
        subprocess.run([*PYTHON, "-c", BY_INPUT.program], input=b"41\n", stdout=subprocess.DEVNULL, check=True)
        times.append(time.perf_counter() - began)
    return statistics.median(times) * 1e3


async def measured(backend: str) -> tuple[float, float, float]:
    """Of the first run, which starts a runner, and of the others."""
    runners = Runners(Plan(backend, PYTHON, (sys.base_prefix,), LIMITS), 1)
    try:
        start = await times(runners, BY_INPUT, End.EXITED, 1)
        by_input = await times(runners, BY_INPUT, End.EXITED, RUNS)
        return start, by_input, await times(runners, BY_TEST, End.PASSED, RUNS)
    finally:
        await runners.close()


async def times(runners: Runners, run: Run, end: End, count: int) -> float:
    seconds = []
    for _ in range(count):
        began = time.perf_counter()
        async with runners.lease() as runner:
            assert (await runner.ask(run)).end is end
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds) * 1e3


if __name__ == "__main__":
    main()
