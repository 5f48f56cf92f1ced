"""Timers of a client, on one thread that sleeps until the next timer is due and ends when there is none.

Owns the thread and the heap of timers. Knows nothing of calls.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
import time
from collections.abc import Callable

log = logging.getLogger("reward_server.client")


class Timer:
    """An action that is due at a time."""

    __slots__ = ("act",)

    def __init__(self, act: Callable[[], None]):
        self.act: Callable[[], None] | None = act

    def cancel(self) -> None:
        """Drops the action. It is harmless once the timer has acted."""
        self.act = None


class Timers:
    """The timers of one client in one process."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._heap: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()
        self._thread: threading.Thread | None = None

    def after(self, delay_s: float, act: Callable[[], None]) -> Timer:
        """Calls `act` in `delay_s` seconds, in the timers' thread. It must not block."""
        timer = Timer(act)
        with self._changed:
            heapq.heappush(self._heap, (time.monotonic() + delay_s, next(self._order), timer))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="reward client timers", daemon=True)
                self._thread.start()
            self._changed.notify()
        return timer

    def hurry(self) -> None:
        """Makes every timer due now."""
        with self._changed:
            self._heap = [(0.0, order, timer) for _, order, timer in self._heap]
            heapq.heapify(self._heap)
            self._changed.notify()

    def _run(self) -> None:
        while (timer := self._next()) is not None:
            act = timer.act
            try:
                if act is not None:
                    act()
            except Exception:
                log.exception("a timer failed")

    def _next(self) -> Timer | None:
        """Waits for the next timer to be due, and returns it; None if there is none, and then the thread ends."""
        with self._changed:
            while self._heap:
                wait_s = self._heap[0][0] - time.monotonic()
                if wait_s <= 0:
                    return heapq.heappop(self._heap)[2]
                self._changed.wait(wait_s)
            self._thread = None
            return None
