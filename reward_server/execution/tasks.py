"""Structured waiting: several coroutines side by side, or one until an event or for a time.

Owns their tasks and timers, which never outlive the caller. Knows nothing of what is waited for.
"""

from __future__ import annotations

import asyncio
import inspect
import types
from collections.abc import Awaitable, Coroutine, Generator
from typing import Any, TypeVar

T = TypeVar("T")

CUT_SHORT = object()


async def until(event: asyncio.Event, coroutine: Coroutine[Any, Any, T]) -> T | object:
    """Returns what the coroutine returns, or CUT_SHORT if the event comes first; the coroutine is then cancelled."""
    work, cut = asyncio.create_task(coroutine), asyncio.create_task(event.wait())
    try:
        await asyncio.wait({work, cut}, return_when=asyncio.FIRST_COMPLETED)
        return work.result() if work.done() else CUT_SHORT
    finally:
        for task in (work, cut):
            task.cancel()
        await asyncio.wait({work, cut})


class OverdueError(Exception):
    """What was waited for was not done in time, and is cancelled."""


async def within(timeout_s: float, awaitable: Awaitable[T]) -> T:
    """Its result, or OverdueError after so many seconds.

    A coroutine that never waits is done at its first step and needs no timer, which would cost more than that step.
    """
    if inspect.iscoroutine(awaitable):
        try:
            awaitable = _rest(awaitable, awaitable.send(None))
        except StopIteration as done:
            return done.value
    limit = asyncio.timeout(timeout_s)
    try:
        async with limit:
            return await awaitable
    except TimeoutError:
        if limit.expired():
            raise OverdueError from None
        raise


@types.coroutine
def _rest(coroutine: Coroutine[Any, Any, T], waits_for: Any) -> Generator[Any, Any, T]:
    """The rest of a coroutine whose last step has ended at something that it waits for."""
    while True:
        try:
            yield waits_for
        except BaseException as error:
            try:
                waits_for = coroutine.throw(error)
            except StopIteration as done:
                return done.value
        else:
            return (yield from coroutine)


async def all_of(*coroutines: Coroutine[Any, Any, T]) -> list[T]:
    """Runs them side by side and returns their results. The first exception cancels the others and is re-raised."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
