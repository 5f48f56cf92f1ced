"""Submit, collect and agree: what each rank makes of the same answers."""

from __future__ import annotations

import math
import time
from concurrent.futures import Future

import pytest

from grpo_plugin.rewards.collect import Pending, exchange
from grpo_plugin.rewards.groups import GroupLayout
from grpo_plugin.rewards.outcome import CallFailure, Outcome
from reward_server.errors import UnavailableError
from reward_server.types import GroupScores, Score, ScorerScores, Status
from tests.support.builders import make_scores


def done(scores: GroupScores) -> Future[GroupScores]:
    future: Future[GroupScores] = Future()
    future.set_result(scores)
    return future


def failing(error: Exception) -> Future[GroupScores]:
    future: Future[GroupScores] = Future()
    future.set_exception(error)
    return future


def pending(futures: dict[int, Future[GroupScores]], timeout_s: float = 10.0) -> Pending:
    now = time.monotonic()
    return Pending(futures, submitted_at=now, deadline=now + timeout_s)


def outcome(answers: dict[int, GroupScores | CallFailure], rank: int = 0, ranks: int = 1) -> Outcome:
    layout = GroupLayout(2 * len(answers) // ranks, 2, rank, ranks)
    return Outcome(answers, layout, ["s0", "s1"], latency_s=0.0, exposed_wait_s=0.0)


def test_every_rank_holds_every_answer_in_the_order_of_the_batch() -> None:
    ranks = [
        pending({1: done(make_scores([3.0, 4.0], group_id="1"))}),
        pending({0: done(make_scores([1.0, None], group_id="0"))}),
    ]
    parts = [(p.answers(), 1.0 + n, 0.5) for n, p in enumerate(ranks)]
    results = [exchange(p, GroupLayout(2, 2, rank, 2), ["s0"], lambda _: parts) for rank, p in enumerate(ranks)]
    for result in results:
        values = result.values_RS()
        assert values[0] == [1.0]
        assert math.isnan(values[1][0])
        assert values[2:] == [[3.0], [4.0]]
        assert result.latency_s == 2.0


def test_scorers_come_in_the_order_asked_for() -> None:
    answers = {0: make_scores([1.0, 2.0], [10.0, 20.0])}
    result = Outcome(answers, GroupLayout(2, 2, 0, 1), ["s1", "s0"], latency_s=0.0, exposed_wait_s=0.0)
    assert result.values_RS() == [[10.0, 1.0], [20.0, 2.0]]


def test_failures_are_summed_up_by_kind_with_the_first_message_of_each() -> None:
    bad = tuple(Score(Status.FAILED, message=f"KeyError: {index}") for index in range(2))
    broken = GroupScores("1", (ScorerScores("s0", "1", 1.0, bad), ScorerScores("s1", "1", 1.0, bad)))
    fine = make_scores([1.0, 1.0], [1.0, 1.0])
    text = outcome({0: fine, 1: broken, 2: CallFailure("DeadlineError", "late")}).summary()
    assert text is not None
    assert "5 scores or groups of this step's 3 groups failed" in text
    assert "2 × scorer 's0' FAILED, the first: group 1, completion 0: KeyError: 0" in text
    assert "1 × DeadlineError, the first: group 2: late" in text


def test_a_scorer_that_is_gone_is_a_failure() -> None:
    gone = outcome({0: make_scores([1.0, 1.0])})
    assert "2 × scorer 's1' FAILED" in (gone.summary() or "")
    assert gone.failed_BGS().tolist() == [[[False, True], [False, True]]]


def test_not_applicable_is_no_failure() -> None:
    assert outcome({0: make_scores([None, 1.0], [1.0, None])}).summary() is None


def test_a_group_without_an_answer_failed_in_every_score_and_has_no_number() -> None:
    lost = outcome({0: CallFailure("DeadlineError", "late")})
    assert lost.failed_BGS().all()
    assert lost.statuses() == {Status.TIMEOUT: 4}
    assert outcome({0: CallFailure("UnavailableError", "gone")}).statuses() == {Status.FAILED: 4}
    assert all(math.isnan(value) for row in lost.values_RS() for value in row)


def test_a_call_that_is_late_is_a_failure_and_is_cancelled() -> None:
    late: Future[GroupScores] = Future()
    answers = pending({0: late}).answers()
    assert answers[0] == CallFailure("DeadlineError", "no answer within 0.0 s")
    assert late.cancelled()


@pytest.mark.parametrize("error", [UnavailableError("gone"), ValueError("not JSON")])
def test_whatever_a_call_raises_is_an_answer_and_not_an_exception_of_one_rank(error: Exception) -> None:
    answers = pending({0: failing(error)}).answers()
    assert answers[0] == CallFailure(type(error).__name__, str(error))


async def test_the_wait_ends_when_the_last_call_does_and_says_how_long_it_was() -> None:
    waiting = pending({0: done(make_scores([1.0])), 1: failing(UnavailableError("gone"))})
    await waiting.arrived()
    assert waiting.exposed_wait_s < 1.0


def test_extra_columns_are_cut_to_this_ranks_rows_and_say_none_where_a_scorer_logged_nothing() -> None:
    one = ScorerScores("s0", "1", 1.0, (Score(Status.OK, 1.0),) * 2, extra={"x": ["a", "b"]})
    two = ScorerScores("s1", "1", 1.0, (Score(Status.OK, 1.0),) * 2, extra={"x": ["c", "d"]})
    silent = ScorerScores("s1", "1", 1.0, (Score(Status.OK, 1.0),) * 2)
    answers = {0: GroupScores("0", (one, silent)), 1: GroupScores("1", (one, two))}
    assert outcome(answers, rank=1, ranks=2).extra_N() == {"x": ["a", "b"], "s1/x": ["c", "d"]}
    assert outcome(answers, rank=0, ranks=2).extra_N() == {"x": ["a", "b"], "s1/x": [None, None]}
