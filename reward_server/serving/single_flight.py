"""In-flight deduplication (single flight): a request that arrives again while it is being scored is scored once.

Owns the requests that are being scored and the calls that wait for their answers. Knows nothing of scoring.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable


class SingleFlight:
    """The requests in flight, by key. Answers are bytes."""

    def __init__(self) -> None:
        self._in_flight: dict[Hashable, _InFlight] = {}

    async def run(self, key: Hashable, request: bytes, by: object, compute: Callable[[], Awaitable[bytes]]) -> bytes:
        """The answer to a request: that of the same request if one is in flight, else what `compute` returns.

        Two requests are the same if they have the same key and the same bytes, and are computed `by` the same object.
        If the call that computes is cancelled or fails, the calls that wait for it compute for themselves.
        """
        while (other := self._in_flight.get(key)) is not None and other.by is by and other.request == request:
            if (answer := await other.wait()) is not None:
                return answer
        if other is not None:  # the key is taken by a different request
            return await compute()
        self._in_flight[key] = own = _InFlight(request, by)
        try:
            answer = await compute()
            own.finish(answer)
            return answer
        finally:
            del self._in_flight[key]
            own.finish(None)


class _InFlight:
    """A request that is being computed, and the calls that wait for its answer."""

    __slots__ = ("_waiting", "by", "request")

    def __init__(self, request: bytes, by: object):
        self.request = request
        self.by = by
        self._waiting: list[asyncio.Future[bytes | None]] = []

    async def wait(self) -> bytes | None:
        """The answer; None if the call that computed it was cancelled or failed."""
        future: asyncio.Future[bytes | None] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        return await future

    def finish(self, answer: bytes | None) -> None:
        """Gives the answer to the calls that wait. Calling it again is harmless."""
        for future in self._waiting:
            if not future.done():
                future.set_result(answer)
        self._waiting.clear()
