"""Worker processes: what hangs is killed, what dies is replaced, and nobody's score is lost by it."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from reward_server.errors import InvalidGroupError, ScorerLoadError
from reward_server.execution.results import NoResultError
from reward_server.execution.worker_pool import WorkerPool
from reward_server.scorers.registry import parse_options
from reward_server.types import Status
from tests.support.builders import make_group
from tests.support.processes import is_alive
from tests.support.waiting import until

FILE = Path(__file__).parents[2] / "support" / "misbehaving.py"


def options(function: str = "obeys", **more: Any) -> Any:
    return parse_options({"type": "function", "name": "f", "function": f"{FILE}:{function}", "place": "worker", **more})


@asynccontextmanager
async def pool_of(size: int = 1, function: str = "obeys", **more: Any) -> AsyncIterator[WorkerPool]:
    pool = WorkerPool([options(function, **more)], size)
    await pool.start()
    try:
        yield pool
    finally:
        await asyncio.wait_for(pool.close(), 10)


async def values(pool: WorkerPool, *completions: str, timeout_s: float = 20) -> list[float | None]:
    timed = await pool.run("f", make_group(completions), timeout_s)
    return [score.value for score in timed.result.scores]


async def failure(pool: WorkerPool, *completions: str, timeout_s: float = 20) -> NoResultError:
    with pytest.raises(NoResultError) as caught:
        await pool.run("f", make_group(completions), timeout_s)
    return caught.value


async def test_a_worker_scores_a_group() -> None:
    async with pool_of() as pool:
        assert await values(pool, "a", "bcd") == [1.0, 3.0]


async def test_the_card_says_what_is_known_only_once_the_function_is_loaded() -> None:
    async with pool_of(function="once_a_call") as pool:
        assert pool.descriptions["f"].required_columns == ("tally",)
        assert pool.descriptions["f"].version


async def test_what_user_code_prints_disturbs_nothing() -> None:
    async with pool_of() as pool:
        assert await values(pool, "print", "a") == [5.0, 1.0]
        assert await values(pool, "b") == [1.0]


async def test_an_exception_is_one_line_and_its_traceback_is_kept_apart() -> None:
    async with pool_of() as pool:
        failed = await failure(pool, "raise")
        assert (failed.status, failed.message) == (Status.FAILED, "TypeError: first line second line")
        assert "misbehaving.py" in failed.details
        assert pool.pids, "the worker lives on"


async def test_sys_exit_in_user_code_ends_nothing_but_the_score() -> None:
    async with pool_of() as pool:
        [pid] = pool.pids
        assert (await failure(pool, "exit")).message == "SystemExit: enough"
        assert pool.pids == [pid]


@pytest.mark.parametrize(("command", "how"), [("die", "exit code 3"), ("segfault", "SIGSEGV")])
async def test_a_worker_that_dies_fails_its_call_and_is_replaced(command: str, how: str) -> None:
    async with pool_of() as pool:
        failed = await failure(pool, command)
        assert failed.status is Status.FAILED
        assert failed.message == f"the worker process died while scoring ({how})"
        assert await values(pool, "a") == [1.0]


@pytest.mark.parametrize("command", ["hang", "spin"])
async def test_what_outlasts_its_limit_is_killed_and_the_worker_replaced(command: str) -> None:
    async with pool_of() as pool:
        [pid] = pool.pids
        began = time.monotonic()
        failed = await failure(pool, command, timeout_s=0.3)
        assert time.monotonic() - began < 2
        assert failed.status is Status.TIMEOUT
        assert failed.message == "no score within timeout_s = 0.3 s; its worker was killed and replaced"
        await until(lambda: not is_alive(pid))
        assert await values(pool, "a") == [1.0]


async def test_what_user_code_started_is_killed_with_it(tmp_path: Path) -> None:
    async with pool_of() as pool:
        await failure(pool, f"child {tmp_path / 'pid'}", timeout_s=0.5)
        child = int((tmp_path / "pid").read_text())
        await until(lambda: not is_alive(child))


async def test_the_limit_counts_from_the_start_of_scoring_not_of_waiting() -> None:
    async with pool_of(size=1) as pool:
        runs = [asyncio.create_task(pool.run("f", make_group(["sleep 0.4"]), 0.9)) for _ in range(4)]
        timed = await asyncio.gather(*runs)
        assert max(run.queued_s for run in timed) > 1.0, "the last waited longer than the limit"
        assert all(0.4 <= run.compute_s < 0.9 for run in timed)


async def test_a_cancelled_caller_frees_its_place_in_the_queue() -> None:
    async with pool_of(size=1) as pool:
        running = asyncio.create_task(values(pool, "sleep 0.5"))
        await asyncio.sleep(0.1)
        waiting = asyncio.create_task(values(pool, "hang"))
        await asyncio.sleep(0.1)
        waiting.cancel()
        assert await asyncio.wait_for(values(pool, "ab"), 5) == [2.0], "the cancelled group was never begun"
        assert await running == [9.0]


async def test_a_cancelled_run_that_hangs_gives_its_worker_back() -> None:
    async with pool_of(size=1) as pool:
        running = asyncio.create_task(values(pool, "hang"))
        await asyncio.sleep(0.1)
        running.cancel()
        assert await asyncio.wait_for(values(pool, "ab"), 10) == [2.0]


async def test_workers_work_side_by_side() -> None:
    async with pool_of(size=2) as pool:
        await until(lambda: len(pool.pids) == 2)
        began = time.monotonic()
        await asyncio.gather(values(pool, "sleep 0.5"), values(pool, "sleep 0.5"))
        assert time.monotonic() - began < 0.95


async def test_a_worker_that_dies_while_idle_is_replaced() -> None:
    async with pool_of(size=1) as pool:
        [pid] = pool.pids
        os.kill(pid, signal.SIGKILL)
        await until(lambda: pool.pids not in ([], [pid]))
        assert await values(pool, "a") == [1.0]


async def test_signals_that_are_meant_for_the_server_do_not_end_a_worker() -> None:
    async with pool_of(size=1) as pool:
        [pid] = pool.pids
        running = asyncio.create_task(values(pool, "sleep 0.4"))
        await asyncio.sleep(0.1)
        for name in (signal.SIGTERM, signal.SIGINT):
            os.kill(pid, name)
        assert await running == [9.0]
        assert pool.pids == [pid]


async def test_a_function_that_blames_the_group_is_told_apart_from_one_that_fails() -> None:
    async with pool_of(function="obeys", required_columns=["answer"]) as pool:
        with pytest.raises(InvalidGroupError, match="needs the column 'answer'"):
            await pool.run("f", make_group(["a"]), 5)


async def test_code_that_does_not_import_fails_the_start_with_the_users_traceback(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("def f(**_):\n    return []\n\n1 / 0\n")
    broken = parse_options(
        {"type": "function", "name": "f", "function": "broken.py:f", "place": "worker"}, base_dir=tmp_path
    )
    pool = WorkerPool([broken], 2)
    with pytest.raises(ScorerLoadError, match=r'(?s)broken\.py", line 4.*ZeroDivisionError: division by zero'):
        await pool.start()
    await pool.close()
    assert pool.pids == []


async def test_a_worker_is_never_replaced_by_one_of_other_code(tmp_path: Path) -> None:
    source = "def f(completions, **_):\n    return [{}.0] * len(completions)\n"
    (tmp_path / "code.py").write_text(source.format(1))
    pool = WorkerPool([parse_options({"type": "function", "name": "f", "function": "code.py:f"}, base_dir=tmp_path)], 1)
    await pool.start()
    try:
        (tmp_path / "code.py").write_text(source.format(2))
        os.kill(pool.pids[0], signal.SIGKILL)
        await until(lambda: not pool.pids)
        refused = await failure(pool, "a")
        assert refused.status is Status.FAILED
        assert "its code has changed since the server loaded it" in refused.message
        (tmp_path / "code.py").write_text(source.format(1))
        await until(lambda: bool(pool.pids))
        assert await values(pool, "a") == [1.0]
    finally:
        await pool.close()


async def test_a_process_that_dies_while_loading_fails_the_start() -> None:
    pool = WorkerPool([options("kills_its_loader", factory=True)], 1)
    with pytest.raises(ScorerLoadError, match=r"died while loading the scorers \(exit code 7\)"):
        await pool.start()
    await pool.close()


async def test_no_process_is_left_after_close() -> None:
    async with pool_of(size=2) as pool:
        await until(lambda: len(pool.pids) == 2)
        pids = pool.pids
        asking = asyncio.create_task(pool.run("f", make_group(["hang"]), 600))
        await asyncio.sleep(0.1)
    assert not any(is_alive(pid) for pid in pids)
    with pytest.raises((NoResultError, asyncio.CancelledError)):
        await asking
