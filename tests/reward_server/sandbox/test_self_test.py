"""The sandbox: what it is attacked with before a server serves, by every backend that can run here."""

from __future__ import annotations

import os
import shutil

import pytest

from reward_server.sandbox.attacks import not_stopped
from reward_server.sandbox.pool import Runners
from reward_server.sandbox.runs import End
from tests.support.sandboxes import needs_sandlock, outcome, plan_of

pytestmark = [pytest.mark.asyncio(loop_scope="module"), needs_sandlock]

HAS_BUBBLEWRAP = shutil.which("bwrap") is not None and os.geteuid() != 0
HONEST = "def f(x):\n    return x + 1"


async def test_sandlock_stops_every_attack_of_the_self_test() -> None:
    assert await not_stopped(plan_of(), 2) == []


@pytest.mark.skipif(not HAS_BUBBLEWRAP, reason="bubblewrap is not installed, or this is root")
async def test_bubblewrap_stops_the_same_and_tells_the_same_ends() -> None:
    assert await not_stopped(plan_of("bubblewrap"), 2) == []
    runners = Runners(plan_of("bubblewrap"), 1)
    try:
        assert (await outcome(runners, "print(input())", stdin="x")).stdout == "x\n"
        assert (await outcome(runners, "import os\nos.kill(os.getpid(), 11)")).end is End.RUNTIME_ERROR
        assert (await outcome(runners, HONEST, "assert f(1) == 2")).end is End.PASSED
        assert (await outcome(runners, HONEST, "assert f(1) == 3")).end is End.WRONG_ANSWER
        assert (await outcome(runners, "import os\nos._exit(0)", "assert f(1) == 2")).end is End.RUNTIME_ERROR
    finally:
        await runners.close()
