"""How much may wait for scores at once, how much of it one caller may have, and when to come back beyond it.

Owns the count of completions and bytes that are queued or being scored, and the estimate of how fast they leave. Knows
nothing of what they are.

    with admission.admitted(completions=8, request_bytes=len(request), of=caller):      raises OverloadedError
        ...

A caller may have up to `_SHARE` times what is still free (dynamic thresholds: Choudhury and Hahne, "Dynamic queue
length thresholds for shared-memory packet switches", 1998). One caller alone has nearly the whole; n callers have equal
shares; and there is always room for one who comes anew, so that a run with 10,000 groups never shuts out one with ten.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from reward_server.errors import OverloadedError
from reward_server.execution.fair_queue import Caller

_SHORTEST_PUSHBACK_S = 0.1
_LONGEST_PUSHBACK_S = 5.0
# One caller alone: 8/9 of the bound. 64 callers: 8/513 each, and 1/513 stays free.
_SHARE = 8
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
        self._held: dict[Caller, tuple[int, int]] = {}  # completions and bytes
        self._pace_s: float | None = None  # seconds a completion, while busy
        self._changed_at = 0.0  # when a group last left, or the first came
        self._next_return = 0.0  # when the next of those who are sent away is to come back

    def resize(self, max_completions: int, max_bytes: int) -> None:
        """Bounds what comes from now on. What is in stays in."""
        self._max_completions = max_completions
        self._max_bytes = max_bytes

    @contextlib.contextmanager
    def admitted(self, completions: int, request_bytes: int, of: Caller = ("", "")) -> Iterator[None]:
        """Counts a group in while the block lasts. Raises OverloadedError, with a time to wait, if it is full."""
        self._refuse_beyond_limits(completions, request_bytes, of)
        if not self._completions:
            self._changed_at = self._clock()
        self._count(completions, request_bytes, of)
        try:
            yield
        finally:
            self._count(-completions, -request_bytes, of)
            self._note_pace(completions)

    def _count(self, completions: int, request_bytes: int, of: Caller) -> None:
        self._completions += completions
        self._bytes += request_bytes
        held = self._held.get(of, (0, 0))
        self._held[of] = (held[0] + completions, held[1] + request_bytes)
        if not self._held[of][0]:
            del self._held[of]

    def _refuse_beyond_limits(self, completions: int, request_bytes: int, of: Caller) -> None:
        free, free_bytes = self._max_completions - self._completions, self._max_bytes - self._bytes
        held, held_bytes = self._held.get(of, (0, 0))
        if not self._completions:
            return
        if completions > free or request_bytes > free_bytes:
            reason, why = "full", "the server is full"
        elif held and (held + completions > _SHARE * free or held_bytes + request_bytes > _SHARE * free_bytes):
            reason, why = (
                "share",
                f"this caller has its share of a busy server ({held} completions, {held_bytes} bytes)",
            )
        else:
            return
        raise OverloadedError(
            f"{why}: {self._completions} completions ({self._bytes} bytes) are queued, and it takes "
            f"{self._max_completions} ({self._max_bytes} bytes); retry later, add replicas, or raise "
            "limits.max_queued_completions and limits.max_queued_bytes in its configuration",
            retry_after_s=self._retry_after_s(completions),
            reason=reason,
        )

    def _note_pace(self, completions: int) -> None:
        now = self._clock()
        pace_s = (now - self._changed_at) / completions
        self._pace_s = pace_s if self._pace_s is None else self._pace_s + _NEWEST * (pace_s - self._pace_s)
        self._changed_at = now

    def _retry_after_s(self, completions: int) -> float:
        """Half the time that what is queued will take, so that there is work left when the caller returns; and after
        those who were sent away before, at twice the pace, so that thousands neither return together nor leave the
        server idle."""
        now, pace_s = self._clock(), self._pace_s or 0.0
        returns_at = max(self._next_return, now + 0.5 * self._completions * pace_s)
        self._next_return = min(returns_at + 0.5 * completions * pace_s, now + _LONGEST_PUSHBACK_S)
        return min(max(returns_at - now, _SHORTEST_PUSHBACK_S), _LONGEST_PUSHBACK_S)
