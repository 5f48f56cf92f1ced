"""The sandbox: nothing of a run stays behind, whoever ended it."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import sys
from pathlib import Path

import pytest

from reward_server.sandbox.pool import Runners
from reward_server.sandbox.runs import End, Outcome, SandboxError
from tests.support.processes import descendants, is_alive
from tests.support.sandboxes import needs_sandlock, outcome, plan_of, started_since, until

pytestmark = [pytest.mark.asyncio(loop_scope="module"), needs_sandlock]

DAEMON = (
    "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        os.setsid()\n"
    "        time.sleep(120)\n    os._exit(0)\n"
)


async def test_what_a_program_left_running_ends_with_its_run() -> None:
    runners = Runners(plan_of(processes=4), 1)
    try:
        await outcome(runners, "print()")
        before = descendants(os.getpid())
        assert (await outcome(runners, DAEMON)).end is End.EXITED
        await until(lambda: not started_since(before))
    finally:
        await runners.close()


async def running(runners: Runners, program: str, processes: int) -> tuple[asyncio.Task[Outcome], set[int]]:
    """A run under way, and all processes of its."""
    before = descendants(os.getpid())
    asking = asyncio.create_task(outcome(runners, program))
    await until(lambda: len(started_since(before)) >= processes)
    await asyncio.sleep(0.3)
    return asking, started_since(before)


async def test_a_cancelled_caller_ends_the_program_and_all_that_it_started() -> None:
    runners = Runners(plan_of(processes=4), 1)
    try:
        asking, processes = await running(runners, DAEMON + "time.sleep(120)", 4)
        asking.cancel()
        await until(lambda: not any(map(is_alive, processes)))
        assert (await outcome(runners, "print(1)")).stdout == "1\n", "and the next caller gets a new runner"
    finally:
        await runners.close()


async def test_a_runner_killed_hard_leaves_no_orphan_and_is_no_score() -> None:
    runners = Runners(plan_of(processes=4), 1)
    try:
        asking, processes = await running(runners, DAEMON + "time.sleep(120)", 4)
        os.kill(min(processes), signal.SIGKILL)
        with pytest.raises(SandboxError, match="the runner of the program ended"):
            await asking
        await until(lambda: not any(map(is_alive, processes)))
        assert (await outcome(runners, "print(1)")).stdout == "1\n"
    finally:
        await runners.close()


async def test_a_server_killed_hard_leaves_no_orphan() -> None:
    folders = [str(Path(__file__).parents[3]), *sys.path]
    code = (
        f"import asyncio, sys\nsys.path[:0] = {folders!r}\nfrom tests.reward_server.sandbox.test_lives import *\n"
        "asyncio.run(outcome(Runners(plan_of(processes=4), 1), DAEMON + 'time.sleep(120)'))"
    )
    before = descendants(os.getpid())
    server = await asyncio.create_subprocess_exec(sys.executable, "-c", code)
    await until(lambda: len(started_since(before)) >= 5, 20)
    await asyncio.sleep(0.3)
    processes = started_since(before)
    server.kill()
    await server.wait()
    await until(lambda: not any(map(is_alive, processes)))


async def test_an_interpreter_that_does_not_come_up_is_the_sandboxes_failure() -> None:
    runners = Runners(dataclasses.replace(plan_of(), python=("/no/such/python",)), 1)
    try:
        with pytest.raises(SandboxError, match=r"did not come up|cannot start"):
            await outcome(runners, "print(1)")
    finally:
        await runners.close()


async def test_closing_leaves_no_process_and_no_file(folders: Path) -> None:
    before = descendants(os.getpid())
    runners = Runners(plan_of(), 2)
    await asyncio.gather(*(outcome(runners, "open('x', 'w').write('x')") for _ in range(4)))
    assert len(os.listdir(folders)) == 2, "runners are used again"
    await runners.close()
    await until(lambda: not started_since(before))
    assert os.listdir(folders) == []
