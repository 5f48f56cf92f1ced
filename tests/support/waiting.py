"""Waiting in tests for what no event tells of: another process, a thread, a counter."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


async def until(condition: Callable[[], object], timeout_s: float = 10) -> None:
    """Returns when the condition holds. Raises TimeoutError if it does not hold in time."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - the condition is another thread's or process's
            await asyncio.sleep(0.005)
