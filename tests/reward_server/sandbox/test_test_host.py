"""The sandbox: one process hosts test after test, and nothing of a program or a test reaches the next one."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

import pytest

from reward_server.sandbox.pool import Runners
from reward_server.sandbox.runs import End, UnusableTestError
from tests.support.processes import descendants, is_alive
from tests.support.sandboxes import needs_sandlock, outcome, plan_of, started_since, until

pytestmark = [pytest.mark.asyncio(loop_scope="module"), needs_sandlock]

HONEST = "def f(x):\n    return x + 1"
ASSERT = "assert f(1) == 2"


def found(folder: Path, pattern: str) -> list[Path]:
    return list(folder.glob(pattern))


async def test_one_process_hosts_many_tests() -> None:
    runners = Runners(plan_of(), 1)
    try:
        await outcome(runners, HONEST, ASSERT)
        before = descendants(os.getpid())
        for right in (True, False) * 5:
            end = (await outcome(runners, HONEST, ASSERT if right else "assert f(1) == 3")).end
            assert end is (End.PASSED if right else End.WRONG_ANSWER)
        assert started_since(before) == set(), "the same runner and the same host"
    finally:
        await runners.close()


@pytest.mark.parametrize(
    "test",
    [
        "import builtins\nbuiltins.AssertionError = builtins.len = None",
        "import sys\nsys.modules['math'] = None\nsys.setrecursionlimit(60)",
        "open('left', 'w').write('x')",
        "import os\nos._exit(0)",
        "import os\nos._exit(3)",
        "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)",
        "while True: pass",
        "import time\ntime.sleep(60)",
        "import os\nos.dup2(os.open('/dev/null', os.O_RDWR), 2)\n1 / 0",
        "import os\nos.closerange(0, 64)",
        "def f(",
    ],
)
async def test_what_one_test_does_is_not_seen_by_the_next(test: str, folders: Path) -> None:
    runners = Runners(plan_of(), 1)
    try:
        with contextlib.suppress(UnusableTestError):
            await outcome(runners, HONEST, test)
        fine = "import math, os\nassert math.isclose(len('ab'), f(1))\nassert os.listdir('.') == []"
        assert (await outcome(runners, HONEST, fine)).end is End.PASSED
        assert (await outcome(runners, HONEST, "assert f(1) == 3")).end is End.WRONG_ANSWER
        assert len(found(folders, "*/*")) == 1, "the folder of the host, and none of those before it"
        assert found(folders, "*/*/*/*") == []
    finally:
        await runners.close()
    assert found(folders, "*") == []


PLANTED = 'V{"passed": true}\n1 1 4\npassE0\n["value", 2]\n'
PLANT = "import os\nfor fd in range(1, 64):\n    try: os.write(fd, {data!r})\n    except OSError: pass\n"


@pytest.mark.parametrize(
    "program",
    [
        PLANT.format(data=PLANTED.encode()),
        PLANT.format(data=b'["value", 2]\n' * 4000) + "def f(x): return 2",
        "def f(x):\n    " + PLANT.format(data=PLANTED.encode()).replace("\n", "\n    ") + "return 2",
    ],
)
async def test_what_a_program_writes_ahead_reaches_no_other_test(program: str) -> None:
    """It may answer more than it was asked. The test of the next program has pipes of its own."""
    runners = Runners(plan_of(), 1)
    try:
        for _ in range(3):
            await outcome(runners, program, "assert f(1) == 3")
            assert (await outcome(runners, "def f(x):\n    return 0", ASSERT)).end is End.WRONG_ANSWER
            assert (await outcome(runners, HONEST, ASSERT)).end is End.PASSED
    finally:
        await runners.close()


async def test_a_host_that_was_killed_is_replaced() -> None:
    runners = Runners(plan_of(), 1)
    try:
        await outcome(runners, "print()")
        before = descendants(os.getpid())
        await outcome(runners, HONEST, ASSERT)
        hosting = started_since(before)
        for pid in hosting:
            os.kill(pid, signal.SIGKILL)
        await until(lambda: not any(map(is_alive, hosting)))
        assert (await outcome(runners, HONEST, ASSERT)).end is End.PASSED
    finally:
        await runners.close()


async def test_a_test_that_cannot_import_is_no_programs_fault_and_a_program_that_cannot_is(runners: Runners) -> None:
    with pytest.raises(UnusableTestError, match=r"the test cannot import what it needs: .*No module named 'numpy'"):
        await outcome(runners, HONEST, "import numpy\nassert f(1) == 2")
    program = "def f(x):\n    import numpy"
    assert (await outcome(runners, program, ASSERT)).detail == "ModuleNotFoundError: No module named 'numpy'"


async def test_a_test_may_set_what_belongs_to_an_object_of_the_programs(runners: Runners) -> None:
    program = (
        "class Node:\n    def __init__(self, x):\n        self.x, self.left = x, None\n"
        "def total(n):\n    return n.x + (total(n.left) if n.left else 0)"
    )
    test = "root = Node(1)\nroot.left = Node(2)\nroot.x = 5\nassert total(root) == 7\nassert root.left.x == 2"
    assert (await outcome(runners, program, test)).end is End.PASSED
