"""Rewards of a mixture's parts: the same statistics as the whole batch has, for each value of a dataset's column.

Owns which values are told apart and what is said of each. Knows nothing of trainers or ranks: it is handed the rows of
all ranks.

Legend: R rows of the global batch, S scorers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from grpo_plugin.rewards.survivors import has_signal
from reward_server.errors import ConfigError

MOST_PARTS = 20
OTHER = "other"
_LONGEST_LABEL = 40


class Parts:
    """The values of a column that are told apart: the first MOST_PARTS that occur, and all later ones as OTHER."""

    def __init__(self, column: str):
        self.column = column
        self._known: dict[str, None] = {}

    def labels(self, values_R: Sequence[Any]) -> list[str]:
        """The part of each row. Raises ConfigError for a value that is neither text, number, bool nor null."""
        return [self._label(value) for value in values_R]

    def _label(self, value: Any) -> str:
        if value is not None and not isinstance(value, (str, int, float, bool)):
            raise ConfigError(
                f"report_by: the column {self.column!r} holds {value!r:.80} of type {type(value).__name__}; name a "
                "column of texts, numbers or bools"
            )
        label = str(value)[:_LONGEST_LABEL]
        if label not in self._known and len(self._known) < MOST_PARTS:
            self._known[label] = None
        return label if label in self._known else OTHER


@dataclass(frozen=True)
class Scored:
    """What a generation was scored: rewards (R, S) with NaN for none, whose scores failed, and how it is read."""

    rewards_RS: torch.Tensor
    failed_R: Sequence[bool]
    weights_S: torch.Tensor
    scorers: Sequence[str]
    group_size: int
    per_scorer: bool  # whether TRL normalizes each scorer's rewards before it sums them

    def metrics(self, labels_R: Sequence[str]) -> dict[str, float]:
        """For each part `<part>/…`: groups, reward, rewards/<scorer>, without_signal, failed.

        `reward` is the mean of the weighted sums and `rewards/<scorer>` of the scores, over completions that have one;
        they are left out where none has. `without_signal` is the share of groups whose rewards are all equal, `failed`
        the share of completions with a failed score.
        """
        signal_R = has_signal(self.rewards_RS, self.weights_S, self.group_size, self.per_scorer)
        found: dict[str, float] = {}
        for label in dict.fromkeys(labels_R):
            rows = [row for row, other in enumerate(labels_R) if other == label]
            found[f"{label}/groups"] = len(rows) / self.group_size
            found[f"{label}/without_signal"] = 1.0 - signal_R[rows].float().mean().item()
            found[f"{label}/failed"] = sum(self.failed_R[row] for row in rows) / len(rows)
            found.update({f"{label}/{name}": mean for name, mean in self._means(rows).items()})
        return found

    def _means(self, rows: Sequence[int]) -> dict[str, float]:
        rewards_S = self.rewards_RS[rows]
        sums = (rewards_S * self.weights_S).nansum(dim=1)  # as TRL 1.16, line 2766, sums them
        sums[torch.isnan(rewards_S).all(dim=1)] = torch.nan
        columns = {"reward": sums, **{f"rewards/{name}": rewards_S[:, at] for at, name in enumerate(self.scorers)}}
        means = {name: values.nanmean().item() for name, values in columns.items()}
        return {name: mean for name, mean in means.items() if mean == mean}  # noqa: PLR0124 - NaN: none has one
