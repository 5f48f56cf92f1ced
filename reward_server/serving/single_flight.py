"""In-flight deduplication (single flight): a request that arrives again while it is being scored is scored once.

Owns the requests that are being scored and the calls that wait for their answers. Knows nothing of scoring.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable


class SingleFlight:
    """The requests in flight, by key. Answers are bytes."""

    def __init__(self) -> None:
        self._in_flight: dict[Hashable, InFlight] = {}

    async def run(self, key: Hashable, request: bytes, by: object, compute: Callable[[], Awaitable[bytes]]) -> bytes:
        """The answer to a request: that of the same request if one is in flight, else what `compute` returns.

        Two requests are the same if they have the same key and the same bytes, and are computed `by` the same object.
        If the call that computes is cancelled or fails, the calls that wait for it compute for themselves.
        """
        while (other := self._in_flight.get(key)) is not None and other.by is by and other.request == request:
            if (answer := await other.wait()) is not None:
                return answer
        if (own := self.claim(key, request, by)) is None:  # the key is taken by a different request
            return await compute()
        with own:
            own.answer = await compute()
            return own.answer

    def claim(self, key: Hashable, request: bytes, by: object) -> InFlight | None:
        """A block in which the request is in flight and its answer is to be set; None if the key is taken."""
        if key in self._in_flight:
            return None
        own = self._in_flight[key] = InFlight(self._in_flight, key, request, by)
        return own


class InFlight:
    """A request that is being computed, and the calls that wait for its answer until the block ends."""

    __slots__ = ("_all", "_key", "_waiting", "answer", "by", "request")

    def __init__(self, in_flight: dict[Hashable, InFlight], key: Hashable, request: bytes, by: object):
        self._all = in_flight
        self._key = key
        self.request = request
        self.by = by
        self.answer: bytes | None = None
        self._waiting: list[asyncio.Future[bytes | None]] = []

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        del self._all[self._key]
        for future in self._waiting:
            if not future.done():
                future.set_result(self.answer)

    async def wait(self) -> bytes | None:
        """The answer; None if the call that computed it was cancelled or failed."""
        future: asyncio.Future[bytes | None] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        return await future
