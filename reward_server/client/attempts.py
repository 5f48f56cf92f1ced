"""The attempts of one call: the first, those after a failure, those beside one that takes long, until one answers.

Owns what is in flight and what is due of one call. When and whether there is another attempt is decided by `retries`;
what an answer means is the client's.

    attempts = Attempts(send, retries, timers, timeout_s, done)
    attempts.start()
    attempts.cancel()                            whatever is in flight ends, on the server too

`done(call, failures)` is called once, from a thread of gRPC's or of the timers', with the attempt that decided: its
code is OK, or that of the failure after which there is no other attempt. It is None if the channel was closed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import grpc

from reward_server.client.retries import HEDGE_CALLS, Retries, is_retryable
from reward_server.client.timers import Timer, Timers

Send = Callable[[float], Any]
"""Sends the call with these seconds until its deadline; returns gRPC's future."""


class Attempts:
    """One call's attempts. The deadline is one for all of them."""

    def __init__(
        self,
        send: Send,
        retries: Retries,
        timers: Timers,
        timeout_s: float,
        done: Callable[[Any, list[Any]], None],
    ):
        self._send = send
        self._retries = retries
        self._timers = timers
        self._done = done
        self._deadline = time.monotonic() + timeout_s
        self._lock = threading.Lock()
        self._in_flight: dict[Any, float] = {}  # an attempt, and when it was sent
        self._failures: list[Any] = []
        self._hedges = 0
        self._pause: Timer | None = None
        self._hedge_timer: Timer | None = None
        self._over = False

    def start(self) -> None:
        """Sends the first attempt."""
        self._attempt_or_end()
        self._plan_hedge()

    def cancel(self) -> None:
        """Ends them all; `done` is not called any more."""
        self._end()

    def _attempt(self) -> None:
        with self._lock:
            if self._over:
                return
            call = self._send(max(0.0, self._deadline - time.monotonic()))
            self._in_flight[call] = time.monotonic()
        call.add_done_callback(self._ended)

    def _ended(self, call: Any) -> None:
        with self._lock:
            sent_at = self._in_flight.pop(call)
            if self._over:
                return
            if call.code() is not grpc.StatusCode.OK:
                self._failures.append(call)
                if is_retryable(call) and (self._in_flight or self._try_again(call)):
                    return
        if self._end():
            if call.code() is grpc.StatusCode.OK:
                self._retries.answered(time.monotonic() - sent_at)
            self._done(call, self._failures)

    def _try_again(self, call: Any) -> bool:
        remaining_s = self._deadline - time.monotonic()
        pause_s = self._retries.pause_s(call, len(self._failures), remaining_s)
        if pause_s is None:
            return False
        self._pause = self._timers.after(pause_s, self._attempt_or_end)
        return True

    def _attempt_or_end(self) -> None:
        try:
            self._attempt()
        except ValueError:  # gRPC's word for a channel that was closed meanwhile
            if self._end():
                self._done(None, self._failures)

    def _end(self) -> bool:
        """Nothing more is sent, and what is in flight is cancelled. False if that was so already."""
        with self._lock:
            if self._over:
                return False
            self._over = True
            losers = list(self._in_flight)
            timers = [timer for timer in (self._pause, self._hedge_timer) if timer is not None]
        for timer in timers:
            timer.cancel()
        for loser in losers:
            loser.cancel()
        return True

    # ------------------------------------------------------------------------------------------------------- the hedge

    def _plan_hedge(self) -> None:
        after_s = self._retries.hedge_after_s(self._hedges)
        if after_s is None:
            return
        with self._lock:
            if not self._over:
                self._hedge_timer = self._timers.after(after_s, self._hedge)

    def _hedge(self) -> None:
        with self._lock:
            waits = bool(self._in_flight) and not self._over
        if waits and self._retries.may_hedge():
            self._hedges += 1
            try:
                for _ in range(HEDGE_CALLS):
                    self._attempt()
            except ValueError:  # closed: what is in flight has ended, and says so
                return
        if not self._over:
            self._plan_hedge()
