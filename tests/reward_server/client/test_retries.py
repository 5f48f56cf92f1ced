"""When a call is tried again, worked by hand: back-off, push-back, budget, hedge."""

from __future__ import annotations

import time
from typing import Any

import grpc
import pytest

from reward_server.client import RewardClient
from reward_server.client.retries import Budget, Retries, pushback_of
from reward_server.errors import TABLE, ConfigError, UnavailableError
from tests.support.builders import make_group
from tests.support.peers import peer
from tests.support.processes import wait_until


class Failure:
    """How a call ended, as gRPC shows it."""

    def __init__(self, code: str = "UNAVAILABLE", pushback_ms: str | None = None, details: str = ""):
        self._code = grpc.StatusCode[code]
        self._details = details
        self._metadata = () if pushback_ms is None else (("grpc-retry-pushback-ms", pushback_ms),)

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._details

    def trailing_metadata(self) -> Any:
        return self._metadata


def pause(retries: Retries, failures: int = 1, remaining_s: float = 60.0, **failure: Any) -> float | None:
    return retries.pause_s(Failure(**failure), failures, remaining_s)


def test_back_off_is_uniform_below_a_bound_that_doubles_up_to_5_s() -> None:
    longest = Retries(uniform=lambda: 1.0)
    assert [pause(longest, n) for n in (1, 2, 3, 6, 7, 8, 1000)] == [0.1, 0.2, 0.4, 3.2, 5.0, 5.0, 5.0]
    assert pause(Retries(uniform=lambda: 0.0), 5) == 0.0


def test_push_back_is_waited_out_and_a_little_more_so_that_callers_do_not_return_together() -> None:
    assert pause(Retries(uniform=lambda: 0.0), pushback_ms="2000") == 2.0
    assert pause(Retries(uniform=lambda: 1.0), failures=9, pushback_ms="2000") == 2.5


@pytest.mark.parametrize(("text", "seconds"), [("0", 0.0), ("1500", 1.5), ("-1", -0.001), ("soon", -1.0), (None, None)])
def test_push_back_is_read_as_grpc_reads_it(text: str | None, seconds: float | None) -> None:
    assert pushback_of(Failure(pushback_ms=text)) == seconds


def test_a_negative_push_back_and_the_callers_fault_are_not_tried_again() -> None:
    retries = Retries()
    assert pause(retries, pushback_ms="-1") is None
    for row in TABLE:
        assert (pause(retries, code=row.code.name) is not None) == row.retryable


def test_what_the_transport_finds_too_large_is_not_tried_again_though_its_code_is_that_of_a_busy_server() -> None:
    retries = Retries(None)
    assert pause(retries, code="RESOURCE_EXHAUSTED", details="the server is full") is not None
    assert pause(retries, code="RESOURCE_EXHAUSTED", details="Received message larger than max (9 vs. 5)") is None


HTTP_500 = {"code": "UNKNOWN", "details": "Received http2 header with status: 500"}
RAY = {"code": "INTERNAL", "details": "The actor died unexpectedly before finishing this task."}


@pytest.mark.parametrize("failure", [HTTP_500, RAY])
def test_a_proxy_that_lost_its_server_in_a_call_is_asked_again_and_at_the_end_no_server_answers(failure: Any) -> None:
    assert pause(Retries(), **failure) is not None
    error = RewardClient("localhost:1").error_of(Failure(**failure), 1.0)
    assert isinstance(error, UnavailableError)
    assert failure["details"] in str(error)


def test_other_errors_that_pass_a_proxy_are_not_tried_again() -> None:
    retries = Retries()
    assert pause(retries, code="INTERNAL", details="internal error; the server's log has its traceback") is None
    assert pause(retries, code="UNKNOWN", details="Received http2 header with status: 404") is None
    assert pause(retries, code="UNKNOWN", details="an error of the service") is None


def test_no_attempt_begins_after_the_deadline() -> None:
    retries = Retries(uniform=lambda: 1.0)
    assert pause(retries, remaining_s=0.1) is None
    assert pause(retries, remaining_s=0.11) == 0.1
    assert pause(retries, remaining_s=1.0, pushback_ms="1000") is None
    assert retries.counts.retries == 1


def test_a_budget_paces_retries_once_it_is_empty_and_answers_fill_it() -> None:
    now = [0.0]
    budget = Budget(2, per_s=10.0, clock=lambda: now[0])
    assert [budget.reserve() for _ in range(4)] == pytest.approx([0.0, 0.0, 0.1, 0.2])
    assert not budget.take()
    now[0] = 0.25  # 2.5 tokens later: from -2 to 0.5
    assert not budget.take()
    budget.earn()
    assert budget.take()
    now[0] = 100.0
    assert [budget.reserve() for _ in range(3)] == pytest.approx([0.0, 0.0, 0.1])


def test_a_thousand_groups_that_fail_together_are_sent_again_within_ten_seconds() -> None:
    retries = Retries(uniform=lambda: 0.0)
    pauses = [pause(retries) for _ in range(1000)]
    assert pauses[:500] == [0.0] * 500
    assert 9.5 < (pauses[-1] or 0.0) <= 10.0


def test_the_p95_hedge_waits_for_twenty_latencies_and_then_goes_by_them() -> None:
    retries = Retries("p95")
    for latency_s in range(1, 20):
        retries.answered(float(latency_s))
    assert retries.hedge_after_s(0) is None
    retries.answered(20.0)
    assert retries.hedge_after_s(0) == 20.0  # the 20th of 20; of 100 it would be the 96th
    for _ in range(80):
        retries.answered(1.0)
    assert retries.hedge_after_s(0) == 16.0


def test_a_call_is_hedged_twice_at_most_and_by_default_never() -> None:
    assert Retries().hedge_after_s(0) is None
    assert [Retries(0.5).hedge_after_s(n) for n in (0, 1, 2)] == [0.5, 0.5, None]


@pytest.mark.parametrize("value", [0.0, -1.0, "p99", "0.5"])
def test_what_is_no_hedge_is_refused_by_its_value(value: Any) -> None:
    with pytest.raises(ConfigError, match=f"hedge_after_s.*{value!r}"):
        RewardClient("localhost:1", hedge_after_s=value)


def test_closing_a_client_ends_what_waits_for_its_next_attempt() -> None:
    def full(_: Any, context: Any) -> Any:
        context.set_trailing_metadata((("grpc-retry-pushback-ms", "20000"),))
        context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")

    with peer(full) as (endpoint, servicer):
        client = RewardClient(endpoint, timeout_s=60)
        future = client.submit(make_group())
        assert wait_until(lambda: client.counts.retries == 1, 5)
        began = time.monotonic()
        client.close()
        assert "cancelled" in str(future.exception(timeout=5))
        assert time.monotonic() - began < 2
        assert servicer.calls == 1
