"""The timers of a client, on their real thread."""

from __future__ import annotations

import threading

from reward_server.client.timers import Timers
from tests.support.processes import wait_until


def test_timers_act_in_their_order_and_their_thread_ends_when_nothing_is_due() -> None:
    timers, acted, last = Timers(), [], threading.Event()
    timers.after(0.06, lambda: (acted.append("second"), last.set()))  # type: ignore[func-returns-value]
    timers.after(0.02, lambda: acted.append("first"))
    timers.after(0.04, lambda: acted.append("never")).cancel()
    assert last.wait(5)
    assert acted == ["first", "second"]
    assert wait_until(lambda: timers._thread is None, 5)
    last.clear()
    timers.after(0.0, last.set)
    assert last.wait(5)


def test_hurry_makes_what_is_due_later_due_now() -> None:
    timers, acted = Timers(), threading.Event()
    timers.after(3600.0, acted.set)
    timers.hurry()
    assert acted.wait(5)
