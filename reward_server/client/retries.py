"""Decides whether and when a call is sent again, and when another replica is asked as well (a hedge).

Owns back-off, push-back, the retry budget, and the latencies that decide about hedges. It sends nothing and does not
wait: `attempts` and the clients do. A client has one `Retries` per process, which its threads share.

No other layer retries. gRPC's own retry policy stays off, since its attempts would multiply ours, would not be counted,
and would end after five even if the deadline is far.
"""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from reward_server import errors
from reward_server.client.proxies import code_of
from reward_server.wire_groups import PUSHBACK_KEY

# Full jitter: uniform between 0 and a bound that doubles (AWS Architecture Blog, "Exponential Backoff And Jitter").
_FIRST_BACKOFF_S = 0.1
_LONGEST_BACKOFF_S = 5.0
# Callers that were pushed back together wait up to this share longer, so that they do not return together.
_PUSHBACK_JITTER = 0.25
# The groups of a step fail together when their replica dies, and all of them may be sent again at once. A service that
# keeps failing then gets this many retries a second from a client; each answer earns one more.
_BUDGET = 500
_BUDGET_PER_S = 50.0
# gRPC's round_robin cannot be told which replica to avoid, but two calls in a row go to two replicas. A hedge is
# therefore two calls; the one that meets the slow replica again costs nothing, since a server scores a group in flight
# only once.
HEDGE_CALLS = 2
_MOST_HEDGES = 2
_LATENCIES = 200
_FEWEST_LATENCIES = 20

HedgeAfter = float | Literal["p95"] | None


@dataclass(slots=True)
class Counts:
    """How often a client sent a group again: after a failure (`retries`), and as a hedge."""

    retries: int = 0
    hedges: int = 0


class Budget:
    """A token bucket. A retry that finds it empty waits for a token; no retry is refused for good."""

    def __init__(self, capacity: float, per_s: float, clock: Callable[[], float] = time.monotonic):
        self._capacity = capacity
        self._per_s = per_s
        self._clock = clock
        self._tokens = capacity
        self._filled_at = clock()

    def reserve(self) -> float:
        """Takes a token and returns the seconds until it is available."""
        self._fill()
        self._tokens -= 1
        return max(0.0, -self._tokens / self._per_s)

    def take(self, count: int = 1) -> bool:
        """Takes so many tokens if they are available now, and returns whether they are."""
        self._fill()
        if self._tokens < count:
            return False
        self._tokens -= count
        return True

    def earn(self) -> None:
        """Adds a token for an answer, since the service works."""
        self._tokens = min(self._capacity, self._tokens + 1)

    def _fill(self) -> None:
        now = self._clock()
        self._tokens = min(self._capacity, self._tokens + (now - self._filled_at) * self._per_s)
        self._filled_at = now


class Retries:
    """Decides for all calls of a client in one process."""

    def __init__(
        self,
        hedge_after_s: HedgeAfter = None,
        budget: Budget | None = None,
        uniform: Callable[[], float] = random.random,
    ):
        self.counts = Counts()
        self._hedge_after_s = hedge_after_s
        self._budget = budget or Budget(_BUDGET, _BUDGET_PER_S)
        self._uniform = uniform
        self._latencies_s: deque[float] = deque(maxlen=_LATENCIES)
        self._lock = threading.Lock()

    def pause_s(self, error: Any, failures: int, remaining_s: float) -> float | None:
        """Seconds until the next attempt after failure number `failures`; None if there is no other attempt.

        There is none if the caller is at fault, if the server says so (a negative push-back, gRFC A6), or if the
        attempt would begin after the deadline.
        """
        if not is_retryable(error):
            return None
        pushback_s = pushback_of(error)
        if pushback_s is not None and pushback_s < 0:
            return None
        with self._lock:
            pause_s = max(self._pause_s(pushback_s, failures), self._budget.reserve())
            if pause_s >= remaining_s:
                self._budget.earn()  # gives the token back, since it is not used
                return None
            self.counts.retries += 1
        return pause_s

    def hedge_after_s(self, hedges: int) -> float | None:
        """Seconds after which another replica is asked, after so many hedges of the call; None for never."""
        if self._hedge_after_s is None or hedges >= _MOST_HEDGES:
            return None
        if self._hedge_after_s != "p95":
            return float(self._hedge_after_s)
        with self._lock:
            if len(self._latencies_s) < _FEWEST_LATENCIES:
                return None
            return sorted(self._latencies_s)[int(0.95 * len(self._latencies_s))]

    def may_hedge(self) -> bool:
        """Whether the budget allows a hedge now. Counts the hedge if so."""
        with self._lock:
            if not self._budget.take(HEDGE_CALLS):
                return False
            self.counts.hedges += 1
            return True

    def answered(self, latency_s: float) -> None:
        """Notes that an attempt was answered after so many seconds."""
        with self._lock:
            self._latencies_s.append(latency_s)
            self._budget.earn()

    def _pause_s(self, pushback_s: float | None, failures: int) -> float:
        if pushback_s is not None:
            return pushback_s * (1 + _PUSHBACK_JITTER * self._uniform())
        return self._uniform() * min(_LONGEST_BACKOFF_S, _FIRST_BACKOFF_S * 2.0 ** min(failures - 1, 30))


def check_hedge(hedge_after_s: HedgeAfter) -> HedgeAfter:
    """Returns the value. Raises ConfigError if it is neither positive seconds, "p95" nor None."""
    is_seconds = isinstance(hedge_after_s, (int, float)) and hedge_after_s > 0
    if hedge_after_s is None or hedge_after_s == "p95" or is_seconds:
        return hedge_after_s
    raise errors.ConfigError(f'hedge_after_s must be seconds above 0, "p95" or None, not {hedge_after_s!r}')


def is_retryable(error: Any) -> bool:
    """Whether another attempt may succeed, by the code of the failed call and `errors.TABLE`."""
    code = code_of(error)
    return code.name in errors.retryable_codes() and not errors.is_too_large(code, error.details() or "")


def pushback_of(error: Any) -> float | None:
    """The seconds that the server asks to wait (gRFC A6): negative for "do not retry", None if it does not ask."""
    for key, value in error.trailing_metadata() or ():
        if key == PUSHBACK_KEY:
            try:
                return int(value) / 1000
            except ValueError:
                return -1.0  # gRFC A6: an unreadable value means that there is no retry
    return None
