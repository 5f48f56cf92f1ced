"""Micro-batches whose tensors are made one at a time, while the device computes the one before.

Owns that each is made once, when it is first asked for. Knows nothing of what it is made of: making one must not read
from the device, or the host would wait for all that was launched before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar, overload

T = TypeVar("T")


class Prepared(Sequence[T]):
    """`count` values, of which number n is `make(n)`, made when it is first asked for and kept."""

    def __init__(self, count: int, make: Callable[[int], T]):
        self._count = count
        self._make = make
        self._made: dict[int, T] = {}

    @classmethod
    def of(cls, values: Sequence[T]) -> Prepared[T]:
        """What is there already."""
        return cls(len(values), values.__getitem__)

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, number: int) -> T: ...
    @overload
    def __getitem__(self, number: slice) -> Sequence[T]: ...
    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self[index] for index in range(*number.indices(self._count))]
        if not 0 <= number < self._count:
            raise IndexError(f"{number} is not one of {self._count}")
        if number not in self._made:
            self._made[number] = self._make(number)
        return self._made[number]

    def prepare(self, number: int) -> None:
        """Makes this one now, if there is one of this number."""
        if number < self._count:
            self[number]
