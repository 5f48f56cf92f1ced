"""Statistics of a mixture's parts, by numbers worked by hand."""

from __future__ import annotations

import math

import pytest
import torch

from grpo_plugin.rewards.mixture import MOST_PARTS, OTHER, Parts, Scored
from reward_server.errors import ConfigError

NAN = math.nan


def scored(rewards: list[list[float]], failed: tuple[int, ...] = (), per_scorer: bool = False) -> Scored:
    """Groups of two rows, scorers `a` of weight 1 and `b` of weight 2."""
    rows = [row in failed for row in range(len(rewards))]
    return Scored(torch.tensor(rewards), rows, torch.tensor([1.0, 2.0]), ["a", "b"], 2, per_scorer)


def test_each_part_has_its_own_rewards_signal_and_failures() -> None:
    # Rewards: math 1 + 2·1 = 3 and 1; code 2 and 2, then 0 and (failed) none.
    found = scored([[1, 1], [1, 0], [0, 1], [0, 1], [0, 0], [NAN, NAN]], failed=(5,)).metrics(
        ["math", "math", "code", "code", "code", "code"]
    )
    assert found == {
        "math/groups": 1.0,
        "math/without_signal": 0.0,
        "math/failed": 0.0,
        "math/reward": 2.0,
        "math/rewards/a": 1.0,
        "math/rewards/b": 0.5,
        "code/groups": 2.0,
        "code/without_signal": 1.0,
        "code/failed": 0.25,
        "code/reward": pytest.approx(4 / 3),
        "code/rewards/a": 0.0,
        "code/rewards/b": pytest.approx(2 / 3),
    }


def test_a_part_without_any_score_has_no_reward_rather_than_0() -> None:
    found = scored([[NAN, NAN], [NAN, NAN]], failed=(0, 1)).metrics(["math", "math"])
    assert found == {"math/groups": 1.0, "math/without_signal": 1.0, "math/failed": 1.0}


def test_signal_is_read_as_trl_normalizes() -> None:
    rewards = [[2.0, 0.0], [0.0, 1.0]]  # both weigh 2
    assert scored(rewards).metrics(["x", "x"])["x/without_signal"] == 1.0
    assert scored(rewards, per_scorer=True).metrics(["x", "x"])["x/without_signal"] == 0.0


def test_values_are_bounded_and_later_ones_are_other() -> None:
    parts = Parts("source")
    first = [f"s{number}" for number in range(MOST_PARTS)]
    assert parts.labels(first) == first
    assert parts.labels(["late", "s0", "later"]) == [OTHER, "s0", OTHER]


def test_numbers_bools_and_nulls_are_parts_and_long_texts_are_cut() -> None:
    assert Parts("level").labels([1, 2.5, True, None, "x" * 100]) == ["1", "2.5", "True", "None", "x" * 40]


def test_a_list_is_refused_with_its_value() -> None:
    with pytest.raises(ConfigError, match=r"'tags' holds \['a'\] of type list; name a column of texts"):
        Parts("tags").labels([["a"]])
