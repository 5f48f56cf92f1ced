"""How long to wait before a process that has died is started again. Decides only; starts nothing."""

from __future__ import annotations

from collections.abc import Sequence

# A process that dies again and again does so for a reason that the next start does not remove.
_MOST_RESTARTS = 5
_WINDOW_S = 60.0
_FIRST_PAUSE_S = 0.5


def pause_s(restarts_at: Sequence[float], now: float) -> float:
    """Seconds until the next restart, after restarts at these times.

    The first restart is immediate, the next pauses double, and there are at most five restarts a minute.
    """
    recent = [at for at in restarts_at if now - at < _WINDOW_S]
    if not recent:
        return 0.0
    if len(recent) >= _MOST_RESTARTS:
        return recent[-_MOST_RESTARTS] + _WINDOW_S - now
    return _FIRST_PAUSE_S * 2 ** (len(recent) - 1)
