"""A group whose rewards are all equal teaches nothing: its advantages are 0, its rows are pruned, and it is counted."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from trl import GRPOTrainer

from grpo_plugin import RemoteGRPOTrainer
from grpo_plugin.rewards.survivors import has_signal
from tests.support.scoring import text_of, vowels
from tests.support.servers import function
from tests.support.training import largest_difference, moved, remote, stock, train, train_both, train_skewed

Serve = Callable[..., Any]

# What float32 leaves of equal rewards; with 1.0 in their place TRL's own advantages are 0.
REWARDS = {"1.2": [1.2], "0.7": [0.7], "0.1 three times": [0.1, 0.1, 0.1]}


def rows(*groups: list[list[float]]) -> torch.Tensor:
    """Scores of groups, shape (R, S)."""
    return torch.tensor([row for group in groups for row in group])


# ------------------------------------------------------------------------------------------ the decision, on rewards


@pytest.mark.parametrize("scores", REWARDS.values(), ids=REWARDS)
def test_equal_rewards_are_no_signal_whatever_rounding_makes_of_their_mean(scores: list[float]) -> None:
    weighted = rows([[1.0] * len(scores)] * 8, [[1.0] * len(scores)] * 7 + [[0.0] * len(scores)])
    assert has_signal(weighted, torch.tensor(scores), 8).tolist() == [False] * 8 + [True] * 8


def test_equal_sums_of_other_scores_are_no_signal_but_are_where_each_scorer_is_normalized() -> None:
    scores, weights = rows([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([1.0, 2.0])
    assert has_signal(scores, weights, 2).tolist() == [False, False]
    assert has_signal(scores, weights, 2, per_scorer=True).tolist() == [True, True]


def test_a_scorer_of_weight_0_gives_no_signal() -> None:
    scores, weights = rows([[1.0, 0.0], [1.0, 1.0]]), torch.tensor([1.0, 0.0])
    assert not has_signal(scores, weights, 2).any()
    assert not has_signal(scores, weights, 2, per_scorer=True).any()


def test_what_has_no_reward_is_left_out_and_a_group_without_any_has_no_signal() -> None:
    none = [math.nan, math.nan]
    scores = rows([[1.2, math.nan], [1.2, math.nan], none], [[1.2, math.nan], [1.0, math.nan], none], [none] * 3)
    for per_scorer in (False, True):
        found = has_signal(scores, torch.ones(2), 3, per_scorer)
        assert found.tolist() == [False] * 3 + [True] * 3 + [False] * 3


# ------------------------------------------------------------------------------------------ the trainer


def solved_in_half(share: float) -> Callable[..., list[float]]:
    """Rewards of `share` for all of a group where its prompt ends in an even digit, else different ones."""

    def reward(prompts: list[Any], completions: list[Any], **_: Any) -> list[float]:
        scores = vowels(completions)
        return [score if int(text_of(p)[-1]) % 2 else share for p, score in zip(prompts, scores, strict=True)]

    reward.__name__ = f"solved_{share}"
    return reward


# Groups of 8, since the mean of 4 equal numbers is exact in float32.
GROUPS_OF_8 = {"num_generations": 8, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 2}
SCALES = [
    {"scale_rewards": "group"},
    {"scale_rewards": "none"},
    {"scale_rewards": "batch"},
    {"multi_objective_aggregation": "normalize_then_sum"},
]


@pytest.mark.slow
@pytest.mark.parametrize("scale", SCALES, ids=lambda scale: next(iter(scale.values())))
@pytest.mark.parametrize("scores", REWARDS.values(), ids=REWARDS)
def test_groups_of_equal_rewards_are_pruned_counted_and_otherwise_learnt_as_with_stock_trl(
    tiny_model: str, tmp_path: Path, scores: list[float], scale: dict[str, str]
) -> None:
    solved = [solved_in_half(score) for score in scores]
    ours, theirs = train_both(tmp_path, tiny_model, reward=solved, **GROUPS_OF_8, **scale)
    assert moved(ours, tiny_model)
    assert largest_difference(ours, theirs) < 5e-5, "apart by what TRL learns from rounding, and no more"
    logs = ours.state.log_history[:3]
    pruned = [log["batches/rows_without_signal"] for log in logs]
    assert 0 < sum(pruned) < 3 * 16
    by_group = scale.get("scale_rewards") in ("group", "none")
    assert [log["frac_reward_zero_std"] for log in logs] == [n / 16 if by_group else n // 16 for n in pruned]
    assert sum(value == 0.0 for value in ours._logs["advantages"]) == pruned[-1]


@pytest.mark.slow
@pytest.mark.parametrize("scale", SCALES, ids=lambda scale: next(iter(scale.values())))
def test_where_all_are_solved_nothing_moves_and_all_are_counted(
    tiny_model: str, tmp_path: Path, scale: dict[str, str]
) -> None:
    def all_solved(completions: list[Any], **_: Any) -> list[float]:
        return [1.2] * len(completions)

    ours = train_skewed(RemoteGRPOTrainer, tmp_path, tiny_model, all_solved, **GROUPS_OF_8, **scale)
    assert not moved(ours, tiny_model)
    for log in ours.state.log_history[:3]:
        assert (log["frac_reward_zero_std"], log["batches/rows_without_signal"]) == (1.0, 16)
    assert set(ours._logs["advantages"]) == {0.0}


@pytest.mark.slow
def test_without_token_batches_groups_of_equal_rewards_are_trls_to_the_bit(tiny_model: str, tmp_path: Path) -> None:
    ours = train(RemoteGRPOTrainer, tiny_model, remote(tmp_path, num_generations=8), solved_in_half(1.2))
    theirs = train(GRPOTrainer, tiny_model, stock(tmp_path, num_generations=8), solved_in_half(1.2))
    assert largest_difference(ours, theirs) == 0.0
    assert ours._logs["advantages"] == theirs._logs["advantages"]
    names = ("frac_reward_zero_std", "reward_std", "grad_norm")
    for one, other in zip(ours.state.log_history[:5], theirs.state.log_history[:5], strict=True):
        assert [one[name] for name in names] == [other[name] for name in names]


@pytest.mark.slow
def test_a_subclass_that_changes_the_rewards_decides_what_has_signal(tiny_model: str, tmp_path: Path) -> None:
    class Shaped(RemoteGRPOTrainer):
        def _calculate_rewards(self, *args: Any) -> torch.Tensor:
            rewards_RS: torch.Tensor = super()._calculate_rewards(*args)
            return rewards_RS + torch.arange(len(rewards_RS))[:, None]

    def all_solved(completions: list[Any], **_: Any) -> list[float]:
        return [1.2] * len(completions)

    ours = train_skewed(Shaped, tmp_path, tiny_model, all_solved)
    assert moved(ours, tiny_model)
    assert ours.state.log_history[0]["batches/rows_without_signal"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("scale", SCALES, ids=lambda scale: next(iter(scale.values())))
def test_survivors_of_equal_rewards_have_no_signal_and_the_dropped_do_not_count(
    tiny_model: str, tmp_path: Path, serve: Serve, scale: dict[str, str]
) -> None:
    # About 30 % of all completions fail; what survives has 1.2 each.
    ours = train_skewed(
        RemoteGRPOTrainer,
        tmp_path,
        tiny_model,
        None,
        reward_endpoint=[serve(function("flaky_and_solved", weight=1.2)).endpoint],
        max_failure_rate=1.0,
        **GROUPS_OF_8,
        **scale,
    )
    assert not moved(ours, tiny_model)
    logs = ours.state.log_history[:3]
    assert sum(log.get("reward/dropped", 0) for log in logs) > 0
    assert [log["frac_reward_zero_std"] for log in logs] == [1.0] * 3
