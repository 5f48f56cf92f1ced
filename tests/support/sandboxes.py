"""A sandbox for tests: small limits, and one run at a time."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import sys
from collections.abc import Callable

import pytest

from reward_server.sandbox.backends import BACKENDS
from reward_server.sandbox.pool import Runners
from reward_server.sandbox.runs import Limits, Outcome, Plan, Run
from tests.support.processes import descendants

LACK = BACKENDS["sandlock"].missing()
needs_sandlock = pytest.mark.skipif(LACK is not None, reason=str(LACK))  # a kernel before Linux 6.12

MIB = 1 << 20
LIMITS = Limits(
    time_s=0.25, memory_bytes=256 * MIB, processes=1, open_files=32, output_bytes=1 * MIB, disk_bytes=4 * MIB
)
PYTHON = os.path.realpath(sys.executable)


def plan_of(backend: str = "sandlock", **limits: int) -> Plan:
    return Plan(backend, (PYTHON, "-I", "-S", "-B"), (sys.base_prefix,), dataclasses.replace(LIMITS, **limits))


async def outcome(runners: Runners, program: str, test: str | None = None, stdin: str = "", **names: str) -> Outcome:
    async with runners.lease() as runner:
        return await runner.ask(Run(program, stdin, test, **names))


async def until(holds: Callable[[], bool], timeout_s: float = 10) -> None:
    async with asyncio.timeout(timeout_s):
        while not holds():  # noqa: ASYNC110 - no event tells of other processes' ends
            await asyncio.sleep(0.02)


def started_since(before: set[int]) -> set[int]:
    """The processes below this one that were not there before."""
    return descendants(os.getpid()) - before
