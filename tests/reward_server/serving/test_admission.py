"""A bound on what is in the server, and the time to wait that it tells."""

from __future__ import annotations

import contextlib

import pytest

from reward_server.errors import OverloadedError
from reward_server.serving.admission import Admission
from tests.support.clock import Clock


def refused_s(admission: Admission, completions: int = 1, request_bytes: int = 1) -> float:
    """The seconds to wait that a group is told."""
    with pytest.raises(OverloadedError) as caught, admission.admitted(completions, request_bytes):
        pass
    assert caught.value.retry_after_s is not None
    return caught.value.retry_after_s


def test_completions_and_bytes_are_bounded_and_free_again() -> None:
    admission = Admission(max_completions=8, max_bytes=100)
    with admission.admitted(4, 50):
        with admission.admitted(4, 50):
            refused_s(admission, 1, 0)
        refused_s(admission, 1, 51)
        with admission.admitted(4, 50):
            pass
    with admission.admitted(8, 100):
        pass


def test_an_empty_server_takes_a_group_beyond_its_bound() -> None:
    admission = Admission(max_completions=8, max_bytes=100)
    with admission.admitted(9, 101):
        refused_s(admission)


def test_what_fails_leaves_too() -> None:
    admission = Admission(max_completions=8, max_bytes=100)
    with contextlib.suppress(RuntimeError), admission.admitted(8, 1):
        raise RuntimeError("the scorer's")
    with admission.admitted(8, 1):
        pass


def test_the_time_to_wait_is_half_of_what_is_queued_at_the_latest_pace_within_bounds() -> None:
    clock = Clock()
    admission = Admission(max_completions=8, max_bytes=100, clock=clock)
    with admission.admitted(8, 1):
        assert refused_s(admission) == 0.1  # no pace is known yet
        clock.now += 4.0
    # 8 completions in 4 s: 0.5 s each. 6 in the queue are 3 s, and half of that 1.5 s.
    clock.now += 1000.0  # idle, which is no pace
    with admission.admitted(6, 1):
        assert refused_s(admission, 3) == pytest.approx(1.5)
        clock.now += 600.0
    # Now a completion took 100 s: 0.9 × 0.5 + 0.1 × 100 = 10.45 s each.
    with admission.admitted(8, 1):
        assert refused_s(admission) == 5.0
