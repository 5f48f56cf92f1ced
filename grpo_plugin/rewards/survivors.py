"""The step that would have been, had the failed completions never been sampled.

Owns what dropping a completion does to TRL's tensors: its rewards become "none" (so the group's mean and std are those
of the survivors), its tokens leave mask and token count, and each survivor's weight makes a mean over rows a mean over
the surviving rows of the whole optimizer step. Pure, but for the sums over ranks that it is handed.

Why weights: TRL means over the rows of a micro-batch, then over micro-batches and ranks,

    1/(A·W) Σ_microbatches 1/B Σ_rows loss(row)  =  Σ_rows loss(row) / (A·W·B)

and the survivors' mean divides by their number K instead. So each row is weighted by A·W·B / K, by way of its advantage
and of beta: every loss of these is linear in the one and in the other.

Legend: N rows on this rank, R rows of the global batch, B rows of a micro-batch, S scorers, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from trl.trainer.utils import nanstd

from grpo_plugin.rewards.policies import FailurePolicy, drop_small_groups

# The losses that mean over rows (GRPOTrainer._compute_loss, TRL 1.16, line 3160). `dapo`, `cispo` and `vespo` divide by
# the generation batch's tokens, `bnpo` by the micro-batch's: there the masks alone are exact.
ROW_MEAN_LOSSES = frozenset({"grpo", "sapo", "dr_grpo", "luspo"})
KNOWN_LOSSES = ROW_MEAN_LOSSES | {"dapo", "cispo", "vespo", "bnpo"}

KEPT = "kept"
ROW_WEIGHT = "row_weight"
SURVIVORS = "survivors"
ROWS = "rows"  # how many of TRL's rows a micro-batch of ours stands for

# What TRL holds of each token, one row a completion; a dropped row's old and reference log-probabilities are set to 0
# with its mask, so that no ratio of what is masked can overflow.
_PER_TOKEN = ("old_per_token_logps", "ref_per_token_logps", "sampling_per_token_logps")


def drop_failed(
    rewards_RS: torch.Tensor,
    remote: slice,
    failed_BGS: Any,
    policy: FailurePolicy,
    min_group_size: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The rewards with NaN for what the policy drops, and which rows are dropped, R. TRL skips NaN in means and std.

    `failed_BGS` says which scores of the service (the columns `remote`) failed.
    """
    groups, size, _ = failed_BGS.shape
    drops = policy.drops(failed_BGS)
    rewards_RS = rewards_RS.clone()
    rewards_BGS = rewards_RS.view(groups, size, -1)
    left_out_BS = torch.from_numpy(np.ascontiguousarray(drops.scorers_BS)).to(rewards_RS.device)
    rewards_BGS[:, :, remote].masked_fill_(left_out_BS[:, None, :], torch.nan)
    # A completion that a failure leaves without any score is dropped as well.
    bare_BG = torch.isnan(rewards_BGS).all(dim=2).cpu().numpy() & failed_BGS.any(axis=(1, 2))[:, None]
    dropped_BG = drop_small_groups(drops.completions_BG | bare_BG, min_group_size)
    dropped_R = torch.from_numpy(np.ascontiguousarray(dropped_BG)).to(rewards_RS.device).view(-1)
    return rewards_RS.masked_fill(dropped_R[:, None], torch.nan), dropped_R


def has_signal(
    rewards_RS: torch.Tensor, weights_S: torch.Tensor, group_size: int, per_scorer: bool = False
) -> torch.Tensor:
    """Which rows are of a group whose rewards are not all equal, R; NaN is no reward.

    The weighted sums are compared bit by bit: in float32 neither the standard deviation of equal rewards nor their
    advantages are exactly 0 (0.0012 for 8 rewards of 1.2). `per_scorer` compares each scorer's scores instead, for
    rewards that are normalized one by one before they are summed (TRL's `normalize_then_sum`).
    """
    if per_scorer:
        values_RS = rewards_RS.masked_fill(weights_S == 0, 0.0)
    else:
        values_RS = (rewards_RS * weights_S).nansum(dim=1, keepdim=True)  # as TRL 1.16, line 2766, sums them
        values_RS = values_RS.masked_fill(torch.isnan(rewards_RS).all(dim=1, keepdim=True), torch.nan)
    values_BGS = values_RS.reshape(-1, group_size, values_RS.shape[1])
    none_BGS = torch.isnan(values_BGS)
    least_BS = values_BGS.masked_fill(none_BGS, torch.inf).amin(dim=1)
    most_BS = values_BGS.masked_fill(none_BGS, -torch.inf).amax(dim=1)
    return (most_BS > least_BS).any(dim=1).repeat_interleave(group_size)


def zero_std_share(rewards_RS: torch.Tensor, weights_S: torch.Tensor, dropped_R: torch.Tensor, size: int) -> float:
    """The share of the survivors whose group's standard deviation rounds to 0; NaN without survivors.

    TRL's `frac_reward_zero_std`, which counts the dropped too (TRL 1.16, line 2808).
    """
    rewards_R = (rewards_RS * weights_S).nansum(dim=1)
    rewards_R[dropped_R] = torch.nan
    std_R = nanstd(rewards_R.view(-1, size), dim=1).repeat_interleave(size)
    alone = torch.isclose(std_R[~dropped_R], torch.zeros((), device=std_R.device))
    return alone.float().mean().item()


def mask_out(batch: dict[str, Any], dropped_N: torch.Tensor) -> None:
    """Takes the dropped rows' tokens out of a generated batch, in place, and notes who was kept."""
    for name in ("completion_mask", *_PER_TOKEN):
        if name in batch:
            batch[name] = torch.where(dropped_N[:, None], torch.zeros_like(batch[name]), batch[name])
    batch[KEPT] = (~dropped_N).float()


def tokens_N(batch: dict[str, Any]) -> torch.Tensor:
    """The number of tokens of each row that the loss counts."""
    mask_NT = batch["completion_mask"]
    return (mask_NT * batch["tool_mask"] if "tool_mask" in batch else mask_NT).sum(dim=1)


def weigh(
    batches: list[dict[str, Any]],
    window: int | None,
    ranks: int,
    reduce: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    """Gives each micro-batch its survivors and the weight of its rows, in place: its step's rows over the survivors.

    `window` micro-batches make an optimizer step, None if the step's gradients are weighed later; `reduce` sums a
    tensor over the ranks. Where nothing survives in a step, the weight is 0. Does nothing, on any rank, where nobody
    was dropped.
    """
    if KEPT not in batches[0]:
        return
    kept = reduce(torch.stack([batch[KEPT].sum() for batch in batches])).tolist()
    for batch, count in zip(batches, kept, strict=True):
        batch[SURVIVORS] = count
    if window is None:
        return
    if len(batches) % window:  # steps that straddle generations: the mean is over the generation's survivors
        window = len(batches)
    for start in range(0, len(batches), window):
        part = slice(start, start + window)
        survivors = sum(kept[part])
        rows = sum(len(batch[KEPT]) for batch in batches[part]) * ranks
        for batch in batches[part]:
            batch[ROW_WEIGHT] = rows / survivors if survivors else 0.0
