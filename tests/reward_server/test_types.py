"""The values that the service speaks of."""

from __future__ import annotations

import pytest

from reward_server.types import Completion, Group, GroupScores, Score, ScorerScores, Status
from tests.support.builders import make_scores


def test_what_siblings_share_is_said_once_and_what_differs_by_each() -> None:
    group = Group.of_rows(
        ["p", "p"], ["a", "b"], None, [{"answer": 1, "seed": 1}, {"answer": 1, "seed": 2}], group_id="g"
    )
    assert group.columns == {"answer": 1}
    assert [completion.columns for completion in group.completions] == [{"seed": 1}, {"seed": 2}]
    assert group.column("answer") == [1, 1]
    assert group.column("seed") == [1, 2]
    assert group.column_names() == ["answer", "seed"]


def test_true_and_one_are_not_the_same_column_value() -> None:
    group = Group.of_rows(["p", "p"], ["a", "b"], None, [{"x": 1}, {"x": True}])
    assert group.column("x") == [1, True]
    assert [type(value) for value in group.column("x")] == [int, bool]


def test_a_prompt_of_its_own_stays_with_its_completion() -> None:
    group = Group.of_rows(["p", "q"], ["a", "b"])
    assert group.prompts() == ["p", "q"]
    assert group.completions[0].prompt is None


def test_a_missing_column_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        Group("p", (Completion("a"),)).column("answer")


def test_rewards_weigh_what_applies_and_are_none_where_nothing_does() -> None:
    # weights 1 and 1: 0.5 + 1; the second scorer alone; none at all
    assert make_scores([0.5, None, None], [1.0, 2.0, None]).rewards() == [1.5, 2.0, None]


def test_a_failed_score_makes_the_reward_none_and_not_zero() -> None:
    failed = ScorerScores("s1", "1", 1.0, (Score(Status.FAILED, message="x"),))
    fine = ScorerScores("s0", "1", 1.0, (Score(Status.OK, 1.0),))
    assert GroupScores("g", (fine, failed)).rewards() == [None]


@pytest.mark.parametrize("status", list(Status))
def test_only_invalid_timeout_and_failed_are_failures(status: Status) -> None:
    assert status.is_failure == (status.name in {"INVALID", "TIMEOUT", "FAILED"})
