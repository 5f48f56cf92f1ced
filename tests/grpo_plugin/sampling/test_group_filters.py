"""Which groups are worth training on."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from grpo_plugin.sampling.group_filters import HasSignal, PassRate, ScoredGroups, filter_of, kept_by
from reward_server.errors import ConfigError

NAN = math.nan


def scored(*groups: list[list[float]], weights: tuple[float, ...] = (1.0,), per_scorer: bool = False) -> ScoredGroups:
    """Groups of completions, each with a score of every scorer."""
    names = [f"s{index}" for index in range(len(weights))]
    return ScoredGroups(torch.tensor(groups), torch.tensor(weights), names, per_scorer)


def test_a_group_has_signal_if_its_rewards_differ_whatever_rounding_makes_of_their_deviation() -> None:
    groups = scored([[1.2]] * 4, [[0.7]] * 4, [[0.1], [0.1], [0.1], [0.2]])
    assert HasSignal().keeps(groups).tolist() == [False, False, True]


def test_scores_that_differ_and_weigh_nothing_are_no_signal() -> None:
    groups = scored([[1.0, 0.0], [1.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]], weights=(1.0, 0.0))
    assert HasSignal().keeps(groups).tolist() == [False, True]


def test_rewards_that_are_equal_while_scores_differ_have_signal_only_where_each_scorer_is_normalized() -> None:
    rows = [[1.0, 0.0], [0.0, 1.0]]
    assert HasSignal().keeps(scored(rows, weights=(1.0, 1.0))).tolist() == [False]
    assert HasSignal().keeps(scored(rows, weights=(1.0, 1.0), per_scorer=True)).tolist() == [True]


def test_a_group_that_failed_or_has_equal_survivors_has_none() -> None:
    groups = scored([[NAN]] * 3, [[1.0], [NAN], [1.0]], [[1.0], [NAN], [0.0]])
    assert HasSignal().keeps(groups).tolist() == [False, False, True]


def test_a_pass_rate_is_the_mean_score_of_the_named_scorer_over_those_that_have_one() -> None:
    half, all_, none = [[5.0, 1.0], [5.0, 0.0]], [[0.0, 1.0], [9.0, 1.0]], [[0.0, NAN], [1.0, NAN]]
    groups = scored(half, all_, none, weights=(1.0, 1.0))
    assert PassRate(0.1, 0.9, "s1").keeps(groups).tolist() == [True, False, False]
    assert PassRate(0.5, 1.0, "s1").keeps(groups).tolist() == [True, True, False]


def test_rewards_are_the_weighted_sums() -> None:
    groups = scored([[1.0, 1.0], [NAN, 1.0], [NAN, NAN]], weights=(1.0, 0.5))
    assert groups.rewards_BG[0].tolist()[:2] == [1.5, 0.5]
    assert math.isnan(groups.rewards_BG[0, 2])


MINE = SimpleNamespace(keeps=lambda groups: groups.rewards_BG.amax(dim=1) > 1)
SHORT = SimpleNamespace(keeps=lambda groups: torch.tensor([True]))
NUMBERS = SimpleNamespace(keeps=lambda groups: groups.rewards_BG[:, 0])


def test_a_filter_of_a_users_own_is_named_by_module_and_attribute() -> None:
    mine = filter_of(f"{__name__}:MINE")
    assert kept_by(mine, scored([[2.0], [0.0]], [[1.0], [0.0]])).tolist() == [True, False]


@pytest.mark.parametrize("wrong", [SHORT, NUMBERS])
def test_what_is_not_a_boolean_a_group_is_refused(wrong: SimpleNamespace) -> None:
    with pytest.raises(ConfigError, match="for 2 groups: it must return a boolean for each group"):
        kept_by(wrong, scored([[2.0], [0.0]], [[1.0], [0.0]]))


@pytest.mark.parametrize(
    ("name", "band", "problem"),
    [
        ("signal", None, "must be one of has_signal, pass_rate, or module:attribute of your own, not 'signal'"),
        ("pass_rate", None, "needs pass_rate, two shares with the lower one first"),
        ("pass_rate", [0.9, 0.1], r"such as 0.1 0.9; not \[0.9, 0.1\]"),
        ("nowhere:x", None, "does not import"),
        ("math:pi", None, r"is not an object with a method keeps\(groups\)"),
        (f"{HasSignal.__module__}:HasSignal", None, "is not an object with a method"),
    ],
)
def test_a_filter_that_is_not_one_is_refused(name: str, band: list[float] | None, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        filter_of(name, band)
