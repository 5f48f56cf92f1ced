"""A time limit costs nothing what does not wait, and ends what waits too long; the coroutine notices no difference."""

from __future__ import annotations

import asyncio

import pytest

from reward_server.execution.tasks import OverdueError, within


async def test_what_does_not_wait_is_done_at_once_even_without_time() -> None:
    async def answers() -> int:
        return 3

    assert await within(0.0, answers()) == 3


async def test_what_waits_goes_on_where_it_was() -> None:
    async def answers() -> list[int]:
        seen = []
        for number in range(3):
            await asyncio.sleep(0.001 * number)
            seen.append(number)
        return seen

    assert await within(20.0, answers()) == [0, 1, 2]


async def test_what_waits_too_long_is_cancelled_where_it_waits() -> None:
    ended = []

    async def hangs() -> None:
        try:
            await asyncio.sleep(20)
        except asyncio.CancelledError:
            await asyncio.sleep(0)  # cleaning up may wait, too
            ended.append("cleaned up")
            raise

    with pytest.raises(OverdueError):
        await within(0.01, hangs())
    assert ended == ["cleaned up"]


async def test_a_future_has_the_same_limit() -> None:
    with pytest.raises(OverdueError):
        await within(0.01, asyncio.get_running_loop().create_future())


async def test_a_timeout_error_of_its_own_is_not_taken_for_the_limit() -> None:
    async def gives_up() -> None:
        async with asyncio.timeout(0.001):
            await asyncio.sleep(20)

    with pytest.raises(TimeoutError):
        await within(20.0, gives_up())


async def test_a_cancelled_caller_cancels_it() -> None:
    ended = asyncio.Event()

    async def hangs() -> None:
        try:
            await asyncio.sleep(20)
        finally:
            ended.set()

    task = asyncio.create_task(within(20.0, hangs()))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()
