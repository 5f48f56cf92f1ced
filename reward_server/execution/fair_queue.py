"""Whose turn is next: runs in turn, in a run its ranks in turn, and within a rank first come first served.

Owns the order in which callers are served where less is free than asked for, and who the current caller is. Knows
nothing of what they wait for.

    async with turns:         at most `size` at once
        ...

Without it a run that sent 10,000 groups is served before a run that sent one a moment later.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Generic, TypeVar

Caller = tuple[str, str]
"""A run's id, and which of its ranks; both may be empty."""

current_caller: ContextVar[Caller] = ContextVar("caller", default=("", ""))
"""Who is served in this task. The service sets it for each call."""

T = TypeVar("T")


class FairQueue(Generic[T]):
    """Items of several callers, in the order in which they are to be served. An item may leave early at no cost."""

    def __init__(self) -> None:
        self._runs: OrderedDict[str, OrderedDict[str, OrderedDict[T, None]]] = OrderedDict()
        self._callers: dict[T, Caller] = {}

    def __len__(self) -> int:
        return len(self._callers)

    def __iter__(self) -> Iterator[T]:
        """Every item, in no order."""
        return iter(list(self._callers))

    def put(self, item: T, of: Caller) -> None:
        run, rank = of
        self._runs.setdefault(run, OrderedDict()).setdefault(rank, OrderedDict())[item] = None
        self._callers[item] = of

    def get(self) -> T:
        """Takes out the next item; its rank goes behind the others of its run, and its run behind the other runs."""
        run, ranks = next(iter(self._runs.items()))
        rank, items = next(iter(ranks.items()))
        item = next(iter(items))
        self._runs.move_to_end(run)
        ranks.move_to_end(rank)
        self.discard(item)
        return item

    def discard(self, item: T) -> None:
        """Takes it out wherever it is, if it is there."""
        of = self._callers.pop(item, None)
        if of is None:
            return
        run, rank = of
        ranks = self._runs[run]
        del ranks[rank][item]
        if not ranks[rank]:
            del ranks[rank]
        if not ranks:
            del self._runs[run]


class FairSemaphore:
    """At most `size` at once; who waits is served in fair order."""

    def __init__(self, size: int):
        self._free = size
        self._waiting: FairQueue[asyncio.Future[None]] = FairQueue()

    async def acquire(self) -> None:
        if self._free:
            self._free -= 1
            return
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.put(place, current_caller.get())
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                self.release()  # given and cancelled in the same turn of the loop
            raise
        finally:
            self._waiting.discard(place)

    def release(self) -> None:
        while self._waiting:
            place = self._waiting.get()
            if not place.done():
                place.set_result(None)
                return
        self._free += 1

    async def __aenter__(self) -> None:
        await self.acquire()

    async def __aexit__(self, *_: object) -> None:
        self.release()
