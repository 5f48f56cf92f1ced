"""`GroupSignalTrainer`: a group whose rewards are all equal has advantages of exactly zero.

Short overrides around `super()`. TRL subtracts a mean and divides by a standard deviation, both rounded, so that equal
rewards leave a small advantage, on which rows would be trained; with `token_batches` on it is 0 here, and the rows are
pruned. With `token_batches` off every number stays TRL's. Owns the metric that counts such groups. Knows nothing of the
service.

Legend: N rows on this rank, R rows of the global batch, S scorers.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch

from grpo_plugin.config import setting
from grpo_plugin.rewards.survivors import has_signal, zero_std_share
from grpo_plugin.trainer.drop import DropFailedTrainer

_METRIC = "frac_reward_zero_std"


class GroupSignalTrainer(DropFailedTrainer):
    """TRL's trainer that decides on the rewards themselves whether a group has something to teach."""

    reward_weights: torch.Tensor
    reward_func_names: list[str]
    _rewards_RS: torch.Tensor  # of the last generation, on all ranks
    _calculate_rewards: Any

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        with self._noted_rewards() as noted:
            batch: dict[str, Any] = super()._generate_and_score_completions(inputs)
        rewards_RS = self._rewards_RS = noted[-1]
        if setting(self.args, "token_batches") and self.model.training:
            self._zero_advantages(batch, rewards_RS)
        elif self._dropped_R is not None and self._is_scaled_by_group:
            size = self.num_generations if self.model.training else self.num_generations_eval
            share = zero_std_share(rewards_RS, self.reward_weights.to(rewards_RS.device), self._dropped_R, size)
            self._metrics[self._mode][_METRIC][-1] = share
        return batch

    @contextlib.contextmanager
    def _noted_rewards(self) -> Iterator[list[torch.Tensor]]:
        """Inside, notes what `_calculate_rewards` returns, also that of a subclass: what TRL makes advantages of."""
        before, calculate = vars(self).get("_calculate_rewards"), self._calculate_rewards
        noted: list[torch.Tensor] = []

        def noting(*args: Any, **kwargs: Any) -> torch.Tensor:
            noted.append(calculate(*args, **kwargs))
            return noted[-1]

        self._calculate_rewards = noting
        try:
            yield noted
        finally:
            del self._calculate_rewards
            if before is not None:
                self._calculate_rewards = before

    def _zero_advantages(self, batch: dict[str, Any], rewards_RS: torch.Tensor) -> None:
        """Sets the advantages of groups without signal to 0, in the batch and in TRL's table of completions."""
        rewards_RS, weights_S = self._on_host(rewards_RS), self.reward_weights.to("cpu")  # where TRL has it
        per_scorer = self.multi_objective_aggregation == "normalize_then_sum"
        signal_R = has_signal(rewards_RS, weights_S, self.num_generations, per_scorer)
        advantages_N = batch["advantages"]
        first = self.accelerator.process_index * len(advantages_N)
        own_N = signal_R[first : first + len(advantages_N)].to(advantages_N.device)
        batch["advantages"] = advantages_N.masked_fill(~own_N, 0.0)
        signal = signal_R.numpy().tolist()
        logged = self._logs["advantages"]  # a deque of the last generation's (TRL 1.16, line 2837)
        for row in (row for row, has in enumerate(signal) if not has):
            logged[row - len(signal)] = 0.0
        dropped = [False] * len(signal) if self._dropped_R is None else self._dropped_R.tolist()
        survivors = [not has for has, gone in zip(signal, dropped, strict=True) if not gone]
        together = has_signal(rewards_RS, weights_S, len(signal)) if self._is_scaled_by_batch else signal_R
        share = _mean(survivors) if self._is_scaled_by_group else float(not together.numpy().any())
        self._metrics["train"][_METRIC][-1] = share

    def _on_host(self, rewards_RS: torch.Tensor) -> torch.Tensor:
        """The rewards, as TRL has read them from the device for its table (TRL 1.16, line 2836)."""
        names, logged = self.reward_func_names, self._logs["rewards"]
        if len(set(names)) < len(names):  # then they share a column
            return rewards_RS.cpu()
        columns_SR = [list(logged[name])[-len(rewards_RS) :] for name in names]
        return torch.tensor(columns_SR, dtype=rewards_RS.dtype).T

    @property
    def _is_scaled_by_group(self) -> bool:
        """Whether TRL's metric is one of groups; else it is 1 or 0 for the whole batch (TRL 1.16, line 2777)."""
        return self.multi_objective_aggregation == "sum_then_normalize" and self.scale_rewards != "batch"

    @property
    def _is_scaled_by_batch(self) -> bool:
        return self.multi_objective_aggregation == "sum_then_normalize" and self.scale_rewards == "batch"


def _mean(values: list[bool]) -> float:
    """NaN of none."""
    return sum(values) / len(values) if values else math.nan
