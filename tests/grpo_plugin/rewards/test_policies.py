"""Who leaves a step when scores failed, and what that does to the batch."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from grpo_plugin.rewards import policies
from grpo_plugin.rewards.policies import DropGroup, DropSample, DropScorer, drop_small_groups
from grpo_plugin.rewards.survivors import KEPT, ROW_WEIGHT, drop_failed, mask_out, tokens_N, weigh, zero_std_share

# Two groups of three completions, two scorers: the second scorer failed on the first group's last completion.
ONE_FAILED = np.array([[[0, 0], [0, 0], [0, 1]], [[0, 0], [0, 0], [0, 0]]], bool)
REWARDS = torch.tensor([[1.0, 10.0], [2.0, 20.0], [3.0, math.nan], [4.0, 40.0], [5.0, 50.0], [6.0, 60.0]])
BOTH = slice(0, 2)


def left(rewards: torch.Tensor) -> list[list[float | None]]:
    return [[None if math.isnan(value) else value for value in row] for row in rewards.tolist()]


def test_drop_sample_takes_the_completion_and_nobody_else() -> None:
    rewards, dropped = drop_failed(REWARDS, BOTH, ONE_FAILED, DropSample(), min_group_size=2)
    assert dropped.tolist() == [False, False, True, False, False, False]
    assert left(rewards)[2] == [None, None]
    assert left(rewards)[:2] == [[1.0, 10.0], [2.0, 20.0]]


def test_drop_group_takes_the_whole_group_and_not_the_next() -> None:
    rewards, dropped = drop_failed(REWARDS, BOTH, ONE_FAILED, DropGroup(), min_group_size=2)
    assert dropped.tolist() == [True, True, True, False, False, False]
    assert left(rewards)[3:] == [[4.0, 40.0], [5.0, 50.0], [6.0, 60.0]]


def test_drop_scorer_leaves_the_scorer_out_for_the_whole_group_so_that_siblings_stay_comparable() -> None:
    rewards, dropped = drop_failed(REWARDS, BOTH, ONE_FAILED, DropScorer(), min_group_size=2)
    assert not dropped.any()
    assert left(rewards)[:3] == [[1.0, None], [2.0, None], [3.0, None]]
    assert left(rewards)[3:] == [[4.0, 40.0], [5.0, 50.0], [6.0, 60.0]]


def test_drop_scorer_drops_a_group_that_has_no_scorer_left() -> None:
    all_failed = np.ones((2, 3, 2), bool)
    all_failed[1] = False
    _, dropped = drop_failed(REWARDS, BOTH, all_failed, DropScorer(), min_group_size=2)
    assert dropped.tolist() == [True] * 3 + [False] * 3


def test_a_local_reward_survives_drop_scorer_and_not_drop_sample() -> None:
    local_first = torch.cat([torch.ones(6, 1), REWARDS[:, 1:]], dim=1)
    failed = ONE_FAILED[:, :, 1:]
    kept, dropped = drop_failed(local_first, slice(1, 2), failed, DropScorer(), min_group_size=2)
    assert not dropped.any()
    assert left(kept)[0] == [1.0, None]
    gone, dropped = drop_failed(local_first, slice(1, 2), failed, DropSample(), min_group_size=2)
    assert left(gone)[2] == [None, None]


def test_a_completion_that_no_scorer_applies_to_is_trls_and_not_dropped() -> None:
    rewards = torch.full((6, 2), math.nan)
    _, dropped = drop_failed(rewards, BOTH, ONE_FAILED, DropScorer(), min_group_size=2)
    assert dropped.tolist() == [True] * 3 + [False] * 3  # the second group has no failure


@pytest.mark.parametrize(("least", "leaves"), [(2, False), (3, True)])
def test_a_group_with_too_few_survivors_leaves(least: int, leaves: bool) -> None:
    dropped = np.array([[False, False, True], [False, False, False]])
    assert drop_small_groups(dropped, least).tolist() == [[leaves, leaves, True], [False] * 3]


def test_a_group_that_lost_nobody_never_leaves_however_small() -> None:
    assert not drop_small_groups(np.zeros((2, 1), bool), 2).any()


def test_a_policy_of_ones_own_comes_by_module_and_attribute() -> None:
    assert policies.policy_of("grpo_plugin.rewards.policies:DropGroup").drops is DropGroup.drops


def test_the_share_of_groups_without_signal_is_taken_over_survivors() -> None:
    # survivors 1, 1 | 4, 5, 6: two of five survivors stand in a group whose rewards are all alike
    rewards = torch.tensor([[1.0], [1.0], [math.nan], [4.0], [5.0], [6.0]])
    dropped = torch.tensor([False, False, True, False, False, False])
    assert zero_std_share(rewards, torch.ones(1), dropped, 3) == pytest.approx(2 / 5)


def test_a_dropped_row_leaves_mask_tokens_and_log_probabilities() -> None:
    batch = {
        "completion_mask": torch.ones(2, 3, dtype=torch.long),
        "old_per_token_logps": torch.full((2, 3), -50.0),
        "tool_mask": torch.tensor([[1, 0, 1], [1, 0, 1]]),
    }
    mask_out(batch, torch.tensor([False, True]))
    assert batch["completion_mask"].tolist() == [[1, 1, 1], [0, 0, 0]]
    assert batch["completion_mask"].dtype == torch.long
    assert batch["old_per_token_logps"].tolist() == [[-50.0] * 3, [0.0] * 3]
    assert tokens_N(batch).tolist() == [2, 0]
    assert batch[KEPT].tolist() == [1.0, 0.0]


def kept(*counts: list[float]) -> list[dict[str, torch.Tensor]]:
    return [{KEPT: torch.tensor(rows)} for rows in counts]


def test_rows_weigh_by_the_rows_over_the_survivors_of_their_optimizer_step() -> None:
    # two steps of two micro-batches of two rows: 3 of 4 and 1 of 4 survive
    batches = kept([1.0, 1.0], [1.0, 0.0], [1.0, 0.0], [0.0, 0.0])
    weigh(batches, window=2, ranks=1, reduce=lambda counts: counts)
    assert [batch[ROW_WEIGHT] for batch in batches] == pytest.approx([4 / 3, 4 / 3, 4.0, 4.0])


def test_the_survivors_of_all_ranks_count() -> None:
    batches = kept([1.0, 1.0])  # 2 of 2 here, 1 of 2 on the other rank
    weigh(batches, window=1, ranks=2, reduce=lambda counts: counts + 1.0)
    assert batches[0][ROW_WEIGHT] == pytest.approx(4 / 3)


def test_a_step_without_survivors_weighs_nothing() -> None:
    batches = kept([0.0], [1.0])
    weigh(batches, window=1, ranks=1, reduce=lambda counts: counts)
    assert [batch[ROW_WEIGHT] for batch in batches] == [0.0, 1.0]


def test_where_nobody_was_dropped_no_rank_talks() -> None:
    def reduce(_: torch.Tensor) -> torch.Tensor:
        raise AssertionError("nothing to sum")

    batches = [{"completion_mask": torch.ones(1, 1)}]
    weigh(batches, window=1, ranks=2, reduce=reduce)
    assert ROW_WEIGHT not in batches[0]
