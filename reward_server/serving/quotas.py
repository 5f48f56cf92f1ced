"""Quotas: how much each named token may ask for in a minute, and when to return beyond that.

Owns the buckets. Knows nothing of tokens themselves: `security` tells the name of a call's token.

    quotas.take("alice", completions=8)         raises OverloadedError, with the time to wait

A bucket holds the quota of a minute and fills evenly, so that the groups of a step may come in a burst. A group that is
larger than the quota of a whole minute is taken when the bucket is full, and the next one waits until it is paid back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from reward_server.config import QuotaConfig
from reward_server.errors import OverloadedError


class Quotas:
    """The quotas of a server. A token without one is not limited."""

    def __init__(self, quotas: Mapping[str, QuotaConfig], clock: Callable[[], float] = time.monotonic):
        self._buckets = {
            name: [
                (what, _Bucket(per_minute, clock))
                for what, per_minute in (
                    ("calls", quota.calls_per_minute),
                    ("completions", quota.completions_per_minute),
                )
                if per_minute is not None
            ]
            for name, quota in quotas.items()
        }

    def take(self, name: str, completions: int) -> None:
        """Counts a group against the token's quota. Raises OverloadedError, and then does not count it."""
        if name not in self._buckets:
            return
        wanted = [(what, bucket, completions if what == "completions" else 1) for what, bucket in self._buckets[name]]
        for what, bucket, amount in wanted:
            if not bucket.has(amount):
                raise OverloadedError(
                    f"the token {name!r} is over its quota of {bucket.per_minute:g} {what} a minute; retry later, or "
                    f"raise quotas.{name}.{what}_per_minute in the server's configuration",
                    retry_after_s=bucket.wait_s(amount),
                    reason="quota",
                )
        for _, bucket, amount in wanted:
            bucket.take(amount)


class _Bucket:
    def __init__(self, per_minute: float, clock: Callable[[], float]):
        self.per_minute = per_minute
        self._clock = clock
        self._level = per_minute
        self._promised = 0.0  # to callers that were told to return and have not yet had the time to
        self._filled_at = clock()

    def has(self, amount: float) -> bool:
        self._fill()
        return self._level >= min(amount, self.per_minute)

    def take(self, amount: float) -> None:
        self._level -= amount

    def wait_s(self, amount: float) -> float:
        """Seconds until there is enough for this call and for those that were refused before it."""
        amount = min(amount, self.per_minute)
        wait_s = (amount - self._level + self._promised) * 60.0 / self.per_minute
        self._promised = min(self._promised + amount, self.per_minute)
        return wait_s

    def _fill(self) -> None:
        now = self._clock()
        earned = (now - self._filled_at) * self.per_minute / 60.0
        self._filled_at = now
        self._level = min(self.per_minute, self._level + earned)
        self._promised = max(0.0, self._promised - earned)
