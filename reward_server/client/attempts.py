"""The attempts of one call until one is answered: the first, the retries after failures, and the hedges.

Owns the attempts of one call that are in flight or due. `retries` decides whether and when there is another attempt,
and the client translates the answer.

    attempts = Attempts(send, retries, timers, timeout_s, done)
    attempts.start()
    attempts.cancel()                            ends what is in flight, on the server too

`done(call, failures)` is called once, from a thread of gRPC or of the timers, with the attempt that decided: its code
is OK, or it is one of the failures, and there is no other attempt. `call` is None if the channel was closed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import grpc

from reward_server.client.retries import HEDGE_CALLS, Retries, is_retryable
from reward_server.client.timers import Timer, Timers

_OK = grpc.StatusCode.OK

Send = Callable[[float], Any]
"""Sends the call with so many seconds until its deadline, and returns gRPC's future."""


class Attempts:
    """The attempts of one call, which share its deadline."""

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
        self._in_flight: dict[Any, float] = {}  # attempts, and when each was sent
        self._failures: list[Any] = []
        self._hedges = 0
        self._pause: Timer | None = None
        self._hedge_timer: Timer | None = None
        self._has_ended = False

    def start(self) -> None:
        """Sends the first attempt."""
        self._attempt_or_end()
        self._plan_hedge()

    def cancel(self) -> None:
        """Ends all attempts. `done` is not called after that."""
        self._end()

    def _attempt(self) -> None:
        with self._lock:
            if self._has_ended:
                return
            call = self._send(max(0.0, self._deadline - time.monotonic()))
            self._in_flight[call] = time.monotonic()
        call.add_done_callback(self._ended)

    def _ended(self, call: Any) -> None:
        is_answered = call.code() is _OK  # asked once, since gRPC takes a lock for it
        with self._lock:
            sent_at = self._in_flight.pop(call)
            if self._has_ended:
                return
            if not is_answered:
                self._failures.append(call)
                if is_retryable(call) and (self._in_flight or self._try_again(call)):
                    return
        if self._end():
            if is_answered:
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
        except ValueError:  # gRPC raises it for a channel that was closed meanwhile
            if self._end():
                self._done(None, self._failures)

    def _end(self) -> bool:
        """Cancels what is in flight, and sends nothing more. Returns False if the call had already ended."""
        with self._lock:
            if self._has_ended:
                return False
            self._has_ended = True
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
            if not self._has_ended:
                self._hedge_timer = self._timers.after(after_s, self._hedge)

    def _hedge(self) -> None:
        with self._lock:
            waits = bool(self._in_flight) and not self._has_ended
        if waits and self._retries.may_hedge():
            self._hedges += 1
            try:
                for _ in range(HEDGE_CALLS):
                    self._attempt()
            except ValueError:  # the channel is closed: the attempts in flight end, and report that
                return
        if not self._has_ended:
            self._plan_hedge()
