"""The cache's memory: the least recently used values leave when a bound in bytes is reached.

Owns the bound. Knows nothing of what keys and values mean.
"""

from __future__ import annotations

from collections import OrderedDict

# What an entry of an OrderedDict takes beside the bytes of its key and value: measured, rounded up.
_ENTRY_BYTES = 200


class MemoryStore:
    """The values that were used last: at most `max_bytes`, the overhead of holding them included."""

    def __init__(self, max_bytes: int):
        self.max_bytes = max_bytes
        self.bytes = 0
        self.evicted = 0
        self._values: OrderedDict[bytes, bytes] = OrderedDict()

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: bytes) -> bytes | None:
        value = self._values.get(key)
        if value is not None:
            self._values.move_to_end(key)
        return value

    def put(self, key: bytes, value: bytes) -> None:
        """Stores a value, and evicts the least recently used ones if the bound is exceeded."""
        if (old := self._values.pop(key, None)) is not None:
            self.bytes -= _cost(key, old)
        if _cost(key, value) > self.max_bytes:
            return
        self._values[key] = value
        self.bytes += _cost(key, value)
        while self.bytes > self.max_bytes:
            self.bytes -= _cost(*self._values.popitem(last=False))
            self.evicted += 1


def _cost(key: bytes, value: bytes) -> int:
    return len(key) + len(value) + _ENTRY_BYTES
