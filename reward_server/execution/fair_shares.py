"""Fair queueing by cost: each flow gets an equal share of the total cost. (`fair_queue` takes turns by count.)

Owns the order and nothing else. A flow is a path such as (run, caller): runs share first, then the callers of a run.

This is start-time fair queueing (Goyal, Vin, Cheng, 1996). In virtual time, an item starts when the item before it in
its flow ends or, if the flow was idle, now. The item that starts first is next. An idle flow saves up no credit, and a
flow that sends its next item only after the answer to its last one does not overtake the flows that wait.

    shares = FairShares()
    shares.add(("run", "caller"), item, cost=1200)
    item = shares.pop()
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)

# Start times of emptied flows are kept up to this number: a flow that comes back at once must not gain by it.
_MAX_IDLE_FLOWS = 256


class FairShares(Generic[T]):
    """The items of one flow in their order, or those of several sub-flows."""

    def __init__(self) -> None:
        self._items: dict[T, float] = {}
        self._flows: dict[str, FairShares[T]] = {}
        self._starts: dict[str, float] = {}  # when a flow's next item starts; kept for emptied flows too
        self._now = 0.0

    def __bool__(self) -> bool:
        return bool(self._items or self._flows)

    def __iter__(self) -> Iterator[T]:
        yield from self._items
        for flow in self._flows.values():
            yield from flow

    def add(self, path: tuple[str, ...], item: T, cost: float) -> None:
        """Appends an item to its flow. All paths must have the same length."""
        if not path:
            self._items[item] = cost
            return
        name, rest = path[0], path[1:]
        if name not in self._flows:
            self._flows[name] = FairShares()
            self._starts[name] = max(self._now, self._starts.get(name, 0.0))
        self._flows[name].add(rest, item, cost)

    def pop(self) -> T:
        """Removes and returns the next item."""
        return self._pop()[0]

    def discard(self, path: tuple[str, ...], item: T) -> bool:
        """Removes an item, as if it had never been added. Returns whether it was in the queue."""
        if not path:
            return self._items.pop(item, None) is not None
        if (flow := self._flows.get(path[0])) is None:
            return False
        found = flow.discard(path[1:], item)
        self._forget_if_empty(path[0])
        return found

    def _pop(self) -> tuple[T, float]:
        if not self._flows:
            item = next(iter(self._items))
            return item, self._items.pop(item)
        name = min(self._flows, key=self._starts.__getitem__)
        item, cost = self._flows[name]._pop()
        self._now = self._starts[name]
        self._starts[name] += cost
        self._forget_if_empty(name)
        return item, cost

    def _forget_if_empty(self, name: str) -> None:
        if self._flows[name]:
            return
        del self._flows[name]
        if not self._flows:  # the queue is empty: all flows start equal again
            self._starts.clear()
            self._now = 0.0
        elif len(self._starts) > len(self._flows) + _MAX_IDLE_FLOWS:
            self._starts = {waiting: self._starts[waiting] for waiting in self._flows}
