"""Scorers of length: bounds, the soft punishment of overlong completions, a budget of tokens."""

from __future__ import annotations

from typing import Any

import pytest
from trl.rewards import get_soft_overlong_punishment

from reward_server.errors import InvalidGroupError
from reward_server.scorers.base import Scorer
from reward_server.types import Completion, Group, Score, Status
from tests.support.scorers import make, problem_of, values

# -------------------------------------------------------------------------------------------------------------- bounds


def test_length_counts_characters_between_bounds_inclusive() -> None:
    assert values(make("length", min=2, max=3), "a", "ab", "abc", "abcd") == [0.0, 1.0, 1.0, 0.0]


def test_length_counts_words() -> None:
    assert values(make("length", max=2, unit="words"), "one  two", "one two three") == [1.0, 0.0]


def test_length_counts_tokens_if_they_were_sent() -> None:
    scorer = make("length", max=1, unit="tokens")
    group = Group("p", (Completion("ab", token_ids=(1,)), Completion("a", token_ids=(1, 2)), Completion("")))
    assert [score.value for score in scorer.score(group).scores] == [1.0, 0.0, 1.0]  # type: ignore[union-attr]
    with pytest.raises(InvalidGroupError, match="token ids"):
        values(scorer, "a")


def test_length_without_or_with_crossed_bounds_is_refused() -> None:
    assert problem_of("length").endswith("set min, max or both; as it is every length scores 1")
    assert problem_of("length", min=3, max=2).endswith("min (3) is above max (2); no length would score 1")


# ------------------------------------------------------------------------------------------------------- soft overlong


def of_tokens(scorer: Scorer, *lengths: int, **columns: Any) -> list[Score]:
    """The scores of completions of so many tokens."""
    completions = tuple(Completion("x", token_ids=tuple(range(length))) for length in lengths)
    result = scorer.score(Group("p", completions, columns=columns))
    return list(result.scores)  # type: ignore[union-attr]


@pytest.mark.parametrize("buffer", [0, 1, 20, 100])
def test_soft_overlong_scores_as_trls_reward_function(buffer: int) -> None:
    lengths = [0, 1, 79, 80, 81, 90, 99, 100, 101, 500]
    expected = get_soft_overlong_punishment(100, buffer)(completion_ids=[[0] * length for length in lengths])
    found = of_tokens(make("soft_overlong", max_tokens=100, buffer_tokens=buffer), *lengths)
    assert [score.value for score in found] == pytest.approx(expected)


def test_soft_overlong_falls_linearly_within_the_buffer() -> None:
    found = of_tokens(make("soft_overlong", max_tokens=100, buffer_tokens=20), 80, 85, 90, 100, 101)
    assert [score.value for score in found] == [0.0, -0.25, -0.5, -1.0, -1.0]


def test_soft_overlong_without_tokens_says_how_to_send_them() -> None:
    with pytest.raises(InvalidGroupError, match="reward_token_ids=True"):
        values(make("soft_overlong", max_tokens=10, buffer_tokens=2), "a long text")


def test_a_buffer_longer_than_the_limit_is_refused() -> None:
    problem = problem_of("soft_overlong", max_tokens=10, buffer_tokens=11)
    assert problem.endswith("buffer_tokens (11) is above max_tokens (10); even an empty completion would be punished")


# ------------------------------------------------------------------------------------------------------- length budget


def test_tokens_beyond_the_budget_cost_linearly_up_to_the_bound() -> None:
    scorer = make("length_budget", budget=10, cost_per_token=0.1, max_cost=0.5)
    assert [score.value for score in of_tokens(scorer, 0, 10, 11, 14, 15, 99)] == pytest.approx(
        [0.0, 0.0, -0.1, -0.4, -0.5, -0.5]
    )


def test_a_budget_without_a_bound_has_no_most_cost() -> None:
    scorer = make("length_budget", budget=10, cost_per_token=0.1, max_cost=None)
    assert of_tokens(scorer, 110)[0].value == pytest.approx(-10.0)


def test_each_row_has_its_own_budget_and_null_is_not_applicable() -> None:
    scorer = make("length_budget", column="budget", cost_per_token=0.5)
    assert scorer.required_columns == ("budget",)
    found = of_tokens(scorer, 4, budget=3)
    assert [score.value for score in found] == [-0.5]
    assert [score.status for score in of_tokens(scorer, 4, budget=None)] == [Status.NOT_APPLICABLE]


@pytest.mark.parametrize("budget", ["many", -1, True, [3], float("nan")])
def test_a_budget_that_is_no_number_of_tokens_is_invalid_and_named(budget: Any) -> None:
    (score,) = of_tokens(make("length_budget", column="budget"), 4, budget=budget)
    assert (score.status, score.value) == (Status.INVALID, None)
    assert f"column 'budget' has {budget!r}, not a number of tokens" in score.message


def test_a_budget_is_a_number_or_a_column() -> None:
    for options in ({}, {"budget": 3, "column": "budget"}):
        assert problem_of("length_budget", **options).endswith(
            "set either budget (tokens) or column (the name of the column that has them)"
        )
