"""In-flight deduplication ("single flight"): callers that ask for the same key at once share one computation.

Owns the running computations and the number of callers of each. Knows nothing of what is computed.

    flights = SingleFlight()
    value = await flights.join(key)               if flights.has(key)
    value = await flights.start(key, coroutine)   otherwise
    await flights.close()
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Hashable
from typing import Any, Generic, TypeVar

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


class SingleFlight(Generic[K, T]):
    """At most one computation for each key. All its callers get its result, or its exception.

    A computation is a task of its own: it survives the caller that started it, and is cancelled when its last caller
    has left.
    """

    def __init__(self) -> None:
        self._flights: dict[K, _Flight[T]] = {}
        self._tasks: set[asyncio.Task[T]] = set()

    @property
    def is_empty(self) -> bool:
        """Whether no computation is running and no cancelled one is still ending."""
        return not self._flights and not self._tasks

    def has(self, key: K) -> bool:
        """Whether there is a computation to join."""
        return key in self._flights

    async def start(self, key: K, coroutine: Coroutine[Any, Any, T]) -> T:
        """Starts the computation of a key that has none, and returns its result."""
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._flights[key] = _Flight(task)
        return await self.join(key)

    async def join(self, key: K) -> T:
        """Returns the result of the computation that is running. Cancelling leaves it to the other callers."""
        flight = self._flights[key]
        flight.callers += 1
        try:
            return await asyncio.shield(flight.task)
        finally:
            flight.callers -= 1
            if not flight.callers:
                del self._flights[key]  # the next caller starts a new computation
                flight.task.cancel()  # without effect if it is done

    async def close(self) -> None:
        """Cancels all computations and waits until they have ended."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


class _Flight(Generic[T]):
    """A running computation and the number of its callers."""

    __slots__ = ("callers", "task")

    def __init__(self, task: asyncio.Task[T]):
        self.task = task
        self.callers = 0
