"""`ServiceScoresTrainer`: sends the groups of a generation to the reward service and takes their scores.

Short overrides around `super()`, which call the modules of `grpo_plugin.rewards`: `groups` (whole groups out of rows),
`collect` (submit the groups, collect the scores), `survivors` (without failed completions), `provenance`. Owns one
generation's call and what is recorded of it. Knows nothing of how the connection is made, or of a run's begin and end:
a subclass connects.

Legend: R rows of the global batch, S scorers.
"""

from __future__ import annotations

from typing import Any

import torch
from accelerate.logging import get_logger
from accelerate.utils import gather_object

from grpo_plugin.config import setting
from grpo_plugin.rewards import provenance
from grpo_plugin.rewards.collect import Pending, exchange, submit
from grpo_plugin.rewards.columns import row_columns
from grpo_plugin.rewards.connection import Connection, together
from grpo_plugin.rewards.failures import FailureRate
from grpo_plugin.rewards.groups import GroupLayout, Row, make_group, whole_groups
from grpo_plugin.rewards.outcome import Outcome
from grpo_plugin.rewards.policies import FailurePolicy, Raise
from grpo_plugin.rewards.survivors import drop_failed
from grpo_plugin.trainer.curriculum import CurriculumTrainer
from reward_server.errors import ConfigError, ScoringFailedError
from reward_server.observability import tracing
from reward_server.types import Group, Status

logger = get_logger(__name__)


class ServiceScoresTrainer(CurriculumTrainer):
    """TRL's trainer with the scores of `_connection` in the columns `_remote` of its rewards; TRL's own without one."""

    _connection: Connection | None = None  # on the class too, for trainers made without __init__, as in TRL's own tests
    _remote: slice
    _submissions = 0
    _provenance: dict[str, Any]
    _policy: FailurePolicy
    _failure_rate: FailureRate

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        with tracing.span("grpo.batch", {"step": self.state.global_step, "mode": self._mode}):
            return super()._generate_and_score_completions(inputs)

    def _send(self, prompts: list[Any], generated: Any) -> tuple[Pending, GroupLayout] | None:
        if self._connection is None:
            return None
        _, ids, _, completions, _, extra, _, _ = generated
        group_size = self.num_generations if self._mode == "train" else self.num_generations_eval
        layout = GroupLayout(len(prompts), group_size, self.accelerator.process_index, self.accelerator.num_processes)
        chosen = setting(self.args, "reward_columns")
        columns_N = [row_columns(row, index, extra, chosen) for index, row in enumerate(self._inputs)]
        rows_N = [Row(*row) for row in zip(prompts, completions, ids, columns_N, strict=True)]
        groups = {
            number: self._make_group(rows, f"{self._mode}-{self._submissions}-{number}")
            for number, rows in whole_groups(rows_N, layout, gather_object).items()
        }
        self._submissions += 1
        timeout_s = setting(self.args, "reward_timeout_s")
        return submit(self._connection.client, groups, timeout_s=timeout_s), layout

    def _make_group(self, rows: Any, name: str) -> Group:
        assert self._connection is not None
        connection = self._connection
        return make_group(
            rows,
            token_ids=setting(self.args, "reward_token_ids"),
            run_id=connection.run_id,
            step=self.state.global_step,
            group_id=f"{connection.run_id}/{name}",
            scorers=tuple(scorer.name for scorer in connection.scorers),
        )

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> torch.Tensor:
        # Leans on TRL 1.16 (grpo_trainer.py:1579): runs every reward function, returns rewards_per_func of all ranks.
        rewards_RS: torch.Tensor = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        if self._pending is None:
            return rewards_RS
        pending, layout = self._pending
        outcome = self._collect(pending, layout)
        self._failures_R = outcome.failures_R()
        values_RS = torch.tensor(outcome.values_RS(), dtype=rewards_RS.dtype, device=rewards_RS.device)
        rewards_RS[:, self._remote] = values_RS
        failed_BGS = outcome.failed_BGS()
        if failed_BGS.any():
            least = setting(self.args, "min_group_size")
            rewards_RS, self._dropped_R = drop_failed(rewards_RS, self._remote, failed_BGS, self._policy, least)
            self._metrics[self._mode]["reward/dropped"].append(int(self._dropped_R.sum()))
        return rewards_RS

    def _collect(self, pending: Pending, layout: GroupLayout) -> Outcome:
        assert self._connection is not None
        names = [scorer.name for scorer in self._connection.scorers]
        outcome = exchange(pending, layout, names, gather_object)
        failures = outcome.summary()
        if failures is not None and (isinstance(self._policy, Raise) or outcome.is_callers_fault()):
            raise ScoringFailedError(f"training stops on every rank, since {failures}")
        if failures is not None:
            logger.warning(failures)
        if self.model.training:
            failed = int(outcome.failed_BGS().any(axis=2).sum())
            self._failure_rate.add(failed, layout.groups * layout.group_size, failures, self._step)
        changed = outcome.digests() - {self._provenance["config_digest"]}
        if changed:
            self._accept_or_refuse_change()
        self._record(outcome)
        return outcome

    def _config_digest(self) -> str:
        return "" if self._connection is None else str(self._provenance["config_digest"])

    def _record(self, outcome: Outcome) -> None:
        metrics = self._metrics[self._mode]
        metrics["reward/latency_s"].append(outcome.latency_s)
        metrics["reward/exposed_wait_s"].append(outcome.exposed_wait_s)
        metrics["reward/groups"].append(outcome.layout.groups)
        for status, count in outcome.statuses().items():
            if status is not Status.OK:
                metrics[f"reward/status/{status.name.lower()}"].append(count)
        for name, values in outcome.metrics().items():
            self._pending_metrics[name].extend(values)
        for name, values in outcome.extra_N().items():
            self._pending_extra_logs[name].extend(values)

    def _accept_or_refuse_change(self) -> None:
        """The service came back as another: an error that says what changed or, if allowed, a note of the step."""
        assert self._connection is not None
        connection = self._connection
        info = together(lambda: connection.client.connect(setting(self.args, "reward_connect_timeout_s")), RankOf(self))
        now = provenance.describe(info, [scorer.name for scorer in connection.scorers])
        changes = "; ".join(provenance.differences(self._provenance, now)) or "two configurations answer at once"
        if not setting(self.args, "allow_reward_change"):
            raise ConfigError(
                f"the reward service's configuration changed during the run, before step {self.state.global_step + 1}: "
                f"{changes}. Serve the old one again and resume, or set allow_reward_change to accept and record it"
            )
        logger.warning(f"the reward service's configuration changed: {changes}")
        provenance.update(self._provenance, now, self.state.global_step, changes)
        if self.args.reward_weights is None:
            weights = [now["scorers"][scorer.name]["weight"] for scorer in connection.scorers]
            self.reward_weights[self._remote] = torch.tensor(weights)

    def _use_weights(self, connection: Connection) -> None:
        if self.args.reward_weights is None:
            self.reward_weights[self._remote] = torch.tensor([scorer.weight for scorer in connection.scorers])

    def _describe(self, connection: Connection) -> dict[str, Any]:
        return provenance.describe(connection.info, [scorer.name for scorer in connection.scorers])


class RankOf:
    """Which rank this is, as `together` asks it."""

    def __init__(self, trainer: ServiceScoresTrainer):
        self.process_index = trainer.accelerator.process_index
        self.local_process_index = trainer.accelerator.local_process_index
