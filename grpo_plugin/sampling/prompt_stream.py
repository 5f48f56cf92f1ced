"""The prompts that replace those of groups without signal: an endless walk over the data set, in shuffled orders.

Apart from the order of the epochs, which stays TRL's: an epoch visits what it visits without it. Owns the order and the
place in it, which a checkpoint keeps. Knows prompts by their index in the data set alone; the same on all ranks.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from typing import Any


class PromptStream:
    """Indices of the data set, each once before any comes again; those given back come first."""

    def __init__(self, size: int, seed: int):
        self.size = size
        self._seed = seed
        self._taken = 0
        self._returned: list[int] = []
        self._order: tuple[int, list[int]] = (-1, [])

    def take(self, count: int) -> list[int]:
        """The next indices."""
        first, self._returned = self._returned[:count], self._returned[count:]
        start, self._taken = self._taken, self._taken + count - len(first)
        return first + [self._at(place) for place in range(start, self._taken)]

    def give_back(self, indices: Iterable[int]) -> None:
        """These were taken for nothing: they come again before any other."""
        self._returned[:0] = indices

    def _at(self, place: int) -> int:
        number, within = divmod(place, self.size)
        if self._order[0] != number:
            order = list(range(self.size))
            random.Random(f"{self._seed}/refill/{number}").shuffle(order)
            self._order = (number, order)
        return self._order[1][within]

    def state(self, unused: Iterable[int]) -> dict[str, Any]:
        """What a checkpoint keeps. `unused` were taken, but a run that resumes will not have what came of them."""
        return {"taken": self._taken, "returned": [*unused, *self._returned]}

    def load(self, state: Mapping[str, Any]) -> None:
        """Goes on from a checkpoint's state."""
        self._taken, self._returned = state["taken"], list(state["returned"])
