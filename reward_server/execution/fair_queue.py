"""Fair queueing by count: runs take turns, ranks take turns within a run, and a rank's items are first in, first out.

Owns the order in which callers are served when there are fewer slots than callers, and the current caller of a task.
Knows nothing of what the slots are. (`fair_shares` divides by cost instead of by count.)

    async with semaphore:         at most `size` at once
        ...

Without it, a run that has sent 10,000 groups would be served before a run that sends one group a moment later.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Generic, TypeVar

Caller = tuple[str, str]
"""The id of a run, and which of its ranks; both may be empty."""

current_caller: ContextVar[Caller] = ContextVar("current_caller", default=("", ""))
"""Whom the current task serves. The service sets it for each call."""

T = TypeVar("T")


class FairQueue(Generic[T]):
    """Items of several callers, in the order in which they are to be served. Removing an item early takes O(1)."""

    def __init__(self) -> None:
        self._runs: OrderedDict[str, OrderedDict[str, OrderedDict[T, None]]] = OrderedDict()
        self._callers: dict[T, Caller] = {}

    def __len__(self) -> int:
        return len(self._callers)

    def __iter__(self) -> Iterator[T]:
        """Yields every item, in no particular order."""
        return iter(list(self._callers))

    def put(self, item: T, caller: Caller) -> None:
        run, rank = caller
        self._runs.setdefault(run, OrderedDict()).setdefault(rank, OrderedDict())[item] = None
        self._callers[item] = caller

    def get(self) -> T:
        """Removes and returns the next item. Its rank moves behind the other ranks, and its run behind other runs."""
        run, ranks = next(iter(self._runs.items()))
        rank, items = next(iter(ranks.items()))
        item = next(iter(items))
        self._runs.move_to_end(run)
        ranks.move_to_end(rank)
        self.discard(item)
        return item

    def discard(self, item: T) -> None:
        """Removes an item if it is in the queue."""
        caller = self._callers.pop(item, None)
        if caller is None:
            return
        run, rank = caller
        ranks = self._runs[run]
        del ranks[rank][item]
        if not ranks[rank]:
            del ranks[rank]
        if not ranks:
            del self._runs[run]


class FairSemaphore:
    """A semaphore of `size` slots whose waiting callers are served in fair order."""

    def __init__(self, size: int):
        self._free = size
        self._waiting: FairQueue[asyncio.Future[None]] = FairQueue()

    async def acquire(self) -> None:
        """Waits for a slot."""
        if self._free:
            self._free -= 1
            return
        slot: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.put(slot, current_caller.get())
        try:
            await slot
        except asyncio.CancelledError:
            if slot.done() and not slot.cancelled():
                self.release()  # the slot was given and its caller cancelled in the same iteration of the event loop
            raise
        finally:
            self._waiting.discard(slot)

    def release(self) -> None:
        """Gives a slot to the next waiting caller, or makes it free."""
        while self._waiting:
            slot = self._waiting.get()
            if not slot.done():
                slot.set_result(None)
                return
        self._free += 1

    async def __aenter__(self) -> None:
        await self.acquire()

    async def __aexit__(self, *_: object) -> None:
        self.release()
