"""Items of many flows, taken so that each flow gets an equal share of what they cost. (`fair` takes turns by count.)

Owns the order and nothing else. A flow is a path such as (run, caller): runs share first, then the callers of a run.

Start-time fair queueing (Goyal, Vin, Cheng, 1996): an item starts, in virtual time, when the flow's item before it ends
or, if the flow was idle, now; the item that starts first is next. An idle flow saves up no credit, and one that sends
its next item when it has the last one's answer does not overtake those that wait.

    shares = FairShares()
    shares.add(("run", "caller"), item, cost=1200)
    item = shares.pop()
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)

_MOST_REMEMBERED = 256


class FairShares(Generic[T]):
    """Items of one flow in their order, or of several flows beneath this one."""

    def __init__(self) -> None:
        self._items: dict[T, float] = {}
        self._flows: dict[str, FairShares[T]] = {}
        self._starts: dict[str, float] = {}  # when a flow's next item starts; of emptied flows too, while it matters
        self._now = 0.0

    def __bool__(self) -> bool:
        return bool(self._items or self._flows)

    def __iter__(self) -> Iterator[T]:
        yield from self._items
        for flow in self._flows.values():
            yield from flow

    def add(self, path: tuple[str, ...], item: T, cost: float) -> None:
        """Puts an item at the end of its flow. All paths are of one length."""
        if not path:
            self._items[item] = cost
            return
        name, rest = path[0], path[1:]
        if name not in self._flows:
            self._flows[name] = FairShares()
            self._starts[name] = max(self._now, self._starts.get(name, 0.0))
        self._flows[name].add(rest, item, cost)

    def pop(self) -> T:
        """The next item, which leaves the queue."""
        return self._pop()[0]

    def discard(self, path: tuple[str, ...], item: T) -> bool:
        """Takes an item out, as if it had never come. Returns whether it was there."""
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
        if not self._flows:  # nobody waits: all are equal again
            self._starts.clear()
            self._now = 0.0
        elif len(self._starts) > len(self._flows) + _MOST_REMEMBERED:
            self._starts = {waiting: self._starts[waiting] for waiting in self._flows}
