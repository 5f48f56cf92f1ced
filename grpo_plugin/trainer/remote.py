"""`RemoteGRPOTrainer`: TRL's GRPOTrainer, with scores from a reward service.

Short overrides around `super()`, which call the modules of `grpo_plugin.rewards`: `connection` (the service), `groups`
(whole groups out of rows), `collect` (submit the groups, collect the scores), `provenance`. Without a service every
override only calls TRL's method.

One step, and where TRL 1.16's GRPOTrainer calls what:

    _generate_and_score_completions
      _generate                          completions exist          → submit the groups
      _get_per_token_logps_and_entropies old and reference log-probs  (the service scores meanwhile)
      _calculate_rewards                 TRL wants rewards          → local functions, then collect and agree
    compute_loss                         the KL term                → anchored to the reference or to the old policy

Legend: N rows on this rank, R rows of the global batch, S scorers.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate.logging import get_logger
from accelerate.utils import gather_object
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin, TrainerCallback
from trl import GRPOConfig

from grpo_plugin.config import setting
from grpo_plugin.rewards import provenance
from grpo_plugin.rewards.checks import NOT_COLUMNS, check_data, check_functions
from grpo_plugin.rewards.collect import Pending, exchange, submit
from grpo_plugin.rewards.connection import Connection, connect, together
from grpo_plugin.rewards.failures import FailureRate, SkipEmptySteps, StopOnFailures
from grpo_plugin.rewards.groups import GroupLayout, Row, make_group, whole_groups
from grpo_plugin.rewards.outcome import Outcome
from grpo_plugin.rewards.policies import Raise, policy_of
from grpo_plugin.rewards.survivors import leave_out
from grpo_plugin.trainer.score_ahead import ScoreAheadTrainer
from reward_server.errors import ConfigError, ScoringFailedError
from reward_server.observability import tracing
from reward_server.types import Group, Status

logger = get_logger(__name__)


class RemoteGRPOTrainer(ScoreAheadTrainer):
    """A drop-in `trl.GRPOTrainer` whose rewards may come from a reward service.

    Takes all that TRL's trainer takes. `args` is a RemoteGRPOConfig, or a plain GRPOConfig (then every feature of ours
    is at its default, and this is TRL's trainer number for number). With `args.reward_endpoint` or `args.reward_config`
    set, each scorer of the service becomes one more reward function after the local `reward_funcs`, which may be left
    out; the service's weights apply unless `args.reward_weights` names one for every function. Groups whose rewards are
    all equal have advantages of exactly 0, unless `token_batches` is off.

    **KL.** TRL's term, the estimator k3 of Schulman (2020) as in eq. 4 of the GRPO paper (arXiv:2402.03300),

        beta · ( π_a(o) / π_θ(o) − log( π_a(o) / π_θ(o) ) − 1 )      for each token o,

    takes the reference model for the anchor π_a. With `kl_anchor="old"` it takes π_old, the policy that sampled, as the
    method's source text has it: no reference model is loaded, and on the first update after sampling, where π_θ is
    π_old, term and gradient are exactly zero. TRL 1.16 multiplies the term by π_θ(o) / π_old(o) if
    `use_bias_correction_kl` is set, which is its default; with `importance_sampling_level="token"` the expectation of
    the term over what π_old samples is then exactly KL(π_θ‖π_old):

        E[ (π_θ/π_old) · ( π_old/π_θ + log( π_θ/π_old ) − 1 ) ] = 1 + KL(π_θ‖π_old) − 1.

    Raises, on every rank together: ConfigError, ScorerLoadError, UnavailableError, WireVersionError when made;
    ScoringFailedError in a step in which a score failed.
    """

    _connection: Connection | None = None  # on the class too, for trainers made without __init__, as in TRL's own tests

    def __init__(
        self,
        model: str | PreTrainedModel | nn.Module,
        reward_funcs: Any = None,
        args: GRPOConfig | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Dataset
        | IterableDataset
        | DatasetDict
        | IterableDatasetDict
        | dict[str, Dataset | IterableDataset]
        | None = None,
        processing_class: PreTrainedTokenizerBase | ProcessorMixin | None = None,
        reward_processing_classes: PreTrainedTokenizerBase | list[PreTrainedTokenizerBase] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
        quantization_config: Any = None,
        peft_config: Any = None,
        tools: list[Callable[..., Any]] | None = None,
        rollout_func: Callable[..., dict[str, Any]] | None = None,
        environment_factory: Any = None,
    ):
        if setting(args, "score_ahead") and environment_factory is not None:
            raise ValueError(
                "score_ahead plays a generation back when its scores arrive, and environments would be reset by it: "
                "set score_ahead to 0, or use a rollout_func"
            )
        self._connection = connect(args, args.distributed_state) if args is not None else None
        self._submissions = 0
        if self._connection is not None:
            weakref.finalize(self, self._connection.close)  # also runs when the interpreter exits
            if rollout_func is None and environment_factory is None:
                check_data(self._connection, args, train_dataset)
            local = _as_list(reward_funcs)
            reward_processing_classes = self._processing_classes(reward_processing_classes, len(local))
            reward_funcs = local + self._columns()
            self._remote = slice(len(local), len(reward_funcs))
            check_functions(reward_funcs, self._connection.scorers, getattr(args, "reward_weights", None))
        with self._without_reference_model(args):
            super().__init__(
                model=model,
                reward_funcs=reward_funcs,
                args=args,
                train_dataset=train_dataset,
                eval_dataset=eval_dataset,
                processing_class=processing_class,
                reward_processing_classes=reward_processing_classes,
                callbacks=callbacks,
                optimizers=optimizers,
                quantization_config=quantization_config,
                peft_config=peft_config,
                tools=tools,
                rollout_func=rollout_func,
                environment_factory=environment_factory,
            )
        if self._connection is not None:
            self._use_service(self._connection)

    def close(self) -> None:
        """Ends the embedded service and the connection; the trainer can score no more. Exiting does it too."""
        if self._connection is not None:
            self._connection.close()

    # ------------------------------------------------------------------------------------------------------- start-up

    def _use_service(self, connection: Connection) -> None:
        if self.args.reward_weights is None:
            self.reward_weights[self._remote] = torch.tensor([scorer.weight for scorer in connection.scorers])
        names = [scorer.name for scorer in connection.scorers]
        self._provenance = provenance.describe(connection.info, names)
        self._policy = policy_of(setting(self.args, "on_reward_failure"))
        self._failure_rate = FailureRate(setting(self.args, "max_failure_rate"), setting(self.args, "failure_window"))
        self._empty_steps = SkipEmptySteps()
        for callback in (
            provenance.ProvenanceCallback(self._provenance),
            StopOnFailures(self._failure_rate),
            self._empty_steps,
        ):
            self.add_callback(callback)
        logger.info(f"rewards come from {connection.client.endpoint}: {', '.join(names)}")

    def _columns(self) -> list[Any]:
        """One async reward function a scorer, TRL's own door for a remote score."""
        assert self._connection is not None
        return [self._column(scorer.name) for scorer in self._connection.scorers]

    def _column(self, name: str) -> Any:
        async def column(prompts: list[Any], **_: Any) -> list[float]:
            assert self._pending is not None
            await self._pending[0].arrived()
            return [0.0] * len(prompts)  # `_calculate_rewards` puts the scores here once the ranks agree on them

        column.__name__ = name
        return column

    def _processing_classes(self, given: Any, local: int) -> list[Any] | None:
        if given is None:
            return None
        assert self._connection is not None
        return _as_list(given) + [None] * len(self._connection.scorers)

    # ----------------------------------------------------------------------------------------------- submit and collect

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        with tracing.span("grpo.batch", {"step": self.state.global_step, "mode": self._mode}):
            return super()._generate_and_score_completions(inputs)

    def _send(self, prompts: list[Any], generated: Any) -> tuple[Pending, GroupLayout] | None:
        if self._connection is None:
            return None
        _, ids, _, completions, _, extra, _, _ = generated
        group_size = self.num_generations if self._mode == "train" else self.num_generations_eval
        layout = GroupLayout(len(prompts), group_size, self.accelerator.process_index, self.accelerator.num_processes)
        columns_N = [self._row_columns(row, index, extra) for index, row in enumerate(self._inputs)]
        rows_N = [Row(*row) for row in zip(prompts, completions, ids, columns_N, strict=True)]
        groups = {
            number: self._make_group(rows, f"{self._mode}-{self._submissions}-{number}")
            for number, rows in whole_groups(rows_N, layout, gather_object).items()
        }
        self._submissions += 1
        timeout_s = setting(self.args, "reward_timeout_s")
        return submit(self._connection.client, groups, timeout_s=timeout_s), layout

    def _row_columns(self, row: dict[str, Any], index: int, extra: dict[str, Any]) -> dict[str, Any]:
        """A row's columns as TRL hands them to reward functions: the dataset's, and what a rollout function added."""
        added = {
            name: values[index] if isinstance(values, list) else values
            for name, values in extra.items()
            if not isinstance(values, list) or index < len(values)
        }
        chosen = setting(self.args, "reward_columns")
        columns = {name: value for name, value in {**row, **added}.items() if name not in NOT_COLUMNS}
        return columns if chosen is None else {name: columns[name] for name in chosen if name in columns}

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
        values_RS = torch.tensor(outcome.values_RS(), dtype=rewards_RS.dtype, device=rewards_RS.device)
        rewards_RS[:, self._remote] = values_RS
        failed_BGS = outcome.failed_BGS()
        if failed_BGS.any():
            least = setting(self.args, "min_group_size")
            rewards_RS, self._dropped_R = leave_out(rewards_RS, self._remote, failed_BGS, self._policy, least)
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
            self._failure_rate.add(failed, layout.groups * layout.group_size, failures)
        changed = outcome.digests() - {self._provenance["config_digest"]}
        if changed:
            self._accept_or_refuse_change()
        self._record(outcome)
        return outcome

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
        info = together(lambda: connection.client.connect(setting(self.args, "reward_connect_timeout_s")), _State(self))
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

    # ------------------------------------------------------------------------------------------- stopping and resuming

    def train(self, *args: Any, **kwargs: Any) -> Any:
        result = super().train(*args, **kwargs)
        if self._connection is not None and self._failure_rate.cause is not None:
            raise ScoringFailedError(f"training stopped on every rank, since {self._failure_rate.cause}")
        return result

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        before = provenance.read(Path(checkpoint)) if checkpoint and self._connection is not None else None
        changes = provenance.differences(before, self._provenance) if before else []
        if changes:
            logger.warning(
                f"{checkpoint} was trained on rewards of another configuration of the reward service: "
                + "; ".join(changes)
            )


class _State:
    """Which rank this is, as `together` asks it."""

    def __init__(self, trainer: RemoteGRPOTrainer):
        self.process_index = trainer.accelerator.process_index
        self.local_process_index = trainer.accelerator.local_process_index


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list) else [value]
