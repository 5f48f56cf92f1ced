"""`ReportByTrainer`: rewards, signal and failures for each value of a column, if `report_by` names one.

A short override around `super()`. Owns the gathering of the column; `rewards.mixture` computes. Knows nothing of the
service.

Legend: N rows on this rank, R rows of the global batch, S scorers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from accelerate.utils import gather_object

from grpo_plugin.config import setting
from grpo_plugin.rewards.mixture import Parts, Scored
from grpo_plugin.trainer.record import RecordTrainer
from reward_server.client.plain import plain
from reward_server.errors import ConfigError


class ReportByTrainer(RecordTrainer):
    """TRL's trainer, which logs the rewards of a mixture's parts."""

    _parts: Parts | None = None

    def _generate_and_score(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super()._generate_and_score(inputs)
        column = setting(self.args, "report_by")
        if column is not None:
            self._report(column, getattr(inputs, "rows", inputs))
        return batch

    def _report(self, column: str, inputs: Sequence[dict[str, Any]]) -> None:
        if self._parts is None:
            self._parts = Parts(column)
        labels_R = self._parts.labels(_values(column, inputs))
        rewards_RS, training = self._rewards_RS, self._mode == "train"
        scored = Scored(
            rewards_RS,
            [bool(failures) for failures in self._failures_R or [{}] * len(rewards_RS)],
            self.reward_weights.to(rewards_RS.device),
            self.reward_func_names,
            self.num_generations if training else self.num_generations_eval,
            per_scorer=self.multi_objective_aggregation == "normalize_then_sum",
        )
        for name, value in scored.metrics(labels_R).items():
            self._metrics[self._mode][f"{column}/{name}"].append(value)


def _values(column: str, inputs: Sequence[dict[str, Any]]) -> list[Any]:
    """The column of the rows of all ranks; all of them raise ConfigError if a row lacks it."""
    gathered = gather_object([(list(row), plain(row.get(column))) for row in inputs])
    for names, _ in gathered:
        if column not in names:
            raise ConfigError(f"report_by names the column {column!r}, and a row has {', '.join(sorted(names))}")
    return [value for _, value in gathered]
