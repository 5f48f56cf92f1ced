"""How much may wait for scores at once, and when to come back if it is full.

Owns the count of completions and bytes that are queued or being scored, and the estimate of how fast they leave. Knows
nothing of what they are.

    with admission.admitted(completions=8, request_bytes=len(request)):      raises OverloadedError
        ...
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from reward_server.errors import OverloadedError

_SHORTEST_PUSHBACK_S = 0.1
_LONGEST_PUSHBACK_S = 5.0
# Weight of the latest group in the running mean of seconds a completion.
_NEWEST = 0.1


class Admission:
    """A bound on what is in the server. An empty server takes any one group, however large."""

    def __init__(self, max_completions: int, max_bytes: int, clock: Callable[[], float] = time.monotonic):
        self._max_completions = max_completions
        self._max_bytes = max_bytes
        self._clock = clock
        self._completions = 0
        self._bytes = 0
        self._pace_s: float | None = None  # seconds a completion, while busy
        self._changed_at = 0.0  # when a group last left, or the first came

    def resize(self, max_completions: int, max_bytes: int) -> None:
        """Bounds what comes from now on. What is in stays in."""
        self._max_completions = max_completions
        self._max_bytes = max_bytes

    @contextlib.contextmanager
    def admitted(self, completions: int, request_bytes: int) -> Iterator[None]:
        """Counts a group in while the block lasts. Raises OverloadedError, with a time to wait, if it is full."""
        self._refuse_beyond_limits(completions, request_bytes)
        if not self._completions:
            self._changed_at = self._clock()
        self._completions += completions
        self._bytes += request_bytes
        try:
            yield
        finally:
            self._completions -= completions
            self._bytes -= request_bytes
            self._note_pace(completions)

    def _refuse_beyond_limits(self, completions: int, request_bytes: int) -> None:
        fits = (
            self._completions + completions <= self._max_completions and self._bytes + request_bytes <= self._max_bytes
        )
        if self._completions and not fits:
            raise OverloadedError(
                f"the server is full: {self._completions} completions ({self._bytes} bytes) are queued, and it takes "
                f"{self._max_completions} ({self._max_bytes} bytes); retry later, add replicas, or raise "
                "limits.max_queued_completions and limits.max_queued_bytes in its configuration",
                retry_after_s=self._retry_after_s(),
            )

    def _note_pace(self, completions: int) -> None:
        now = self._clock()
        pace_s = (now - self._changed_at) / completions
        self._pace_s = pace_s if self._pace_s is None else self._pace_s + _NEWEST * (pace_s - self._pace_s)
        self._changed_at = now

    def _retry_after_s(self) -> float:
        """Half the time that what is queued will take, so that there is work left when the caller returns."""
        estimate_s = 0.5 * self._completions * (self._pace_s or 0.0)
        return min(max(estimate_s, _SHORTEST_PUSHBACK_S), _LONGEST_PUSHBACK_S)
