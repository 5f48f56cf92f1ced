"""Structured waiting: several coroutines side by side, or one until an event. Their tasks never outlive the caller."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine, Generator
from typing import Any, Generic, TypeVar

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


class Begun(Generic[T]):
    """An awaitable that has run up to where it first waits. Many scores are there by then, and need no time limit.

    begun = Begun(answer)
    if begun.waits:
        async with asyncio.timeout(timeout_s):
            await begun
    begun.result
    """

    def __init__(self, awaitable: Awaitable[T]):
        """Runs the first step, and raises what it raises."""
        self.result: T
        self._steps = awaitable.__await__()
        try:
            self._waited_for = self._steps.send(None)
            self.waits = True
        except StopIteration as end:
            self.waits, self.result = False, end.value

    def __await__(self) -> Generator[Any, Any, T]:
        waited_for = self._waited_for
        try:
            while True:
                try:
                    sent = yield waited_for
                except BaseException as error:
                    waited_for = self._steps.throw(error)
                else:
                    waited_for = self._steps.send(sent)
        except StopIteration as end:
            self.result = end.value
            return self.result
