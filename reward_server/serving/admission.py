"""Admission control: how much may wait for scores at once, how much of it one caller may hold, and when to return.

Owns the count of completions and bytes that are queued or being scored, and the estimate of how fast they leave. Knows
nothing of their content.

    with admission.admitted(completions=8, request_bytes=len(request), caller=caller):      raises OverloadedError
        ...

A caller may hold up to `_SHARE` times what is still free (dynamic thresholds: Choudhury and Hahne, "Dynamic queue
length thresholds for shared-memory packet switches", 1998). A single caller gets nearly everything, and n callers get
equal shares. There is always room for a new caller, so that a run with 10,000 groups never shuts out a run with ten.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from reward_server.errors import OverloadedError
from reward_server.execution.fair_queue import Caller

_SHORTEST_PUSHBACK_S = 0.1
_LONGEST_PUSHBACK_S = 5.0
# A single caller gets 8/9 of the bound. 64 callers get 8/513 each, and 1/513 stays free.
_SHARE = 8
# Weight of the latest group in the running mean of seconds a completion.
_NEWEST = 0.1


class Admission:
    """A bound on what the server holds. An empty server takes any single group, however large.

    `groups`, `completions` and `request_bytes` are what it holds now.
    """

    def __init__(self, max_completions: int, max_bytes: int, clock: Callable[[], float] = time.monotonic):
        self._max_completions = max_completions
        self._max_bytes = max_bytes
        self._clock = clock
        self.groups = 0
        self.completions = 0
        self.request_bytes = 0
        self._held: dict[Caller, tuple[int, int]] = {}  # completions and bytes
        self._pace_s: float | None = None  # seconds a completion, while busy
        self._changed_at = 0.0  # when a group last left, or the first entered
        self._next_return = 0.0  # when the next refused caller is to return

    def resize(self, max_completions: int, max_bytes: int) -> None:
        """Changes the bounds for new groups. Groups that are in stay in."""
        self._max_completions = max_completions
        self._max_bytes = max_bytes

    def admitted(self, completions: int, request_bytes: int, caller: Caller = ("", "")) -> _Admitted:
        """A block that counts a group while it lasts.

        Entering it raises OverloadedError, with a time to wait, if the server or the caller's share of it is full.
        """
        return _Admitted(self, completions, request_bytes, caller)

    def enter(self, completions: int, request_bytes: int, caller: Caller) -> None:
        """Counts a group in. Raises OverloadedError."""
        self._refuse_beyond_limits(completions, request_bytes, caller)
        if not self.completions:
            self._changed_at = self._clock()
        self.groups += 1
        self._count(completions, request_bytes, caller)

    def leave(self, completions: int, request_bytes: int, caller: Caller) -> None:
        """Counts a group out, and notes how fast groups leave."""
        self.groups -= 1
        self._count(-completions, -request_bytes, caller)
        self._note_pace(completions)

    def _count(self, completions: int, request_bytes: int, caller: Caller) -> None:
        self.completions += completions
        self.request_bytes += request_bytes
        held, held_bytes = self._held.get(caller, (0, 0))
        if held + completions:
            self._held[caller] = (held + completions, held_bytes + request_bytes)
        else:
            del self._held[caller]

    def _refuse_beyond_limits(self, completions: int, request_bytes: int, caller: Caller) -> None:
        if not self.completions:
            return
        free, free_bytes = self._max_completions - self.completions, self._max_bytes - self.request_bytes
        held, held_bytes = self._held.get(caller, (0, 0))
        if completions > free or request_bytes > free_bytes:
            reason, why = "full", "the server is full"
        elif held and (held + completions > _SHARE * free or held_bytes + request_bytes > _SHARE * free_bytes):
            reason, why = (
                "share",
                f"this caller already has its share of a busy server ({held} completions, {held_bytes} bytes)",
            )
        else:
            return
        raise OverloadedError(
            f"{why}: {self.completions} completions ({self.request_bytes} bytes) are queued, and it takes "
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
        """Seconds until the caller should return: half the time that the queued completions will take, so that work is
        left when it returns. Callers that were refused before return first, at twice the pace, so that thousands of
        them neither return together nor leave the server idle.
        """
        now, pace_s = self._clock(), self._pace_s or 0.0
        returns_at = max(self._next_return, now + 0.5 * self.completions * pace_s)
        self._next_return = min(returns_at + 0.5 * completions * pace_s, now + _LONGEST_PUSHBACK_S)
        return min(max(returns_at - now, _SHORTEST_PUSHBACK_S), _LONGEST_PUSHBACK_S)


class _Admitted:
    """A context manager; a class costs a call less than a generator does."""

    __slots__ = ("_admission", "_size")

    def __init__(self, admission: Admission, *size: Any):
        self._admission = admission
        self._size = size

    def __enter__(self) -> None:
        self._admission.enter(*self._size)

    def __exit__(self, *_: object) -> None:
        self._admission.leave(*self._size)
