"""Values that are made once for a generation, and used again as long as it lasts.

Owns when they are forgotten. Knows nothing of what they are.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

T = TypeVar("T")


class Memo:
    """Keeps values for one owner at a time; an owner is recognised by its identity and is kept alive."""

    def __init__(self) -> None:
        self._owner: object = None
        self._values: dict[Hashable, Any] = {}

    def get(self, owner: object, key: Hashable, make: Callable[[], T]) -> T:
        """The owner's value of this key, made on first use. Forgets what it kept for another owner."""
        if owner is not self._owner:
            self._owner, self._values = owner, {}
        if key not in self._values:
            self._values[key] = make()
        value: T = self._values[key]
        return value

    def forget(self) -> None:
        self._owner, self._values = None, {}
