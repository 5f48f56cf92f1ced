"""`RemoteGRPOTrainer`: TRL's GRPOTrainer, with scores from a reward service.

The outermost of the trainer's layers, and the one that users make. Owns the constructor, the connection to the service,
and what begins and ends with a run. Without a service every override only calls TRL's method.

One step, and where TRL 1.16's GRPOTrainer calls what:

    _generate_and_score_completions
      _generate                          completions exist          → submit the groups
      _get_per_token_logps_and_entropies old and reference log-probs  (the service scores meanwhile)
      _calculate_rewards                 TRL wants rewards          → local functions, then collect and agree
    compute_loss                         the KL term                → anchored to the reference or to the old policy
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate.logging import get_logger
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from grpo_plugin.config import setting
from grpo_plugin.rewards import provenance
from grpo_plugin.rewards.checks import check_data, check_functions, check_report_by
from grpo_plugin.rewards.connection import Connection, connect, reconnect
from grpo_plugin.rewards.failures import FailureRate, SkipEmptySteps, StopOnFailures
from grpo_plugin.rewards.policies import policy_of
from grpo_plugin.trainer.installed_trl import fit, moved
from grpo_plugin.trainer.service_scores import RankOf, ServiceScoresTrainer
from reward_server.errors import ScoringFailedError

logger = get_logger(__name__)


class RemoteGRPOTrainer(ServiceScoresTrainer):
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

    Features that the installed TRL has no place for are off, with a warning (`trainer.installed_trl`).

    Raises, on every rank together: ConfigError, ScorerLoadError, UnavailableError, WireVersionError when made;
    ScoringFailedError in a step in which a score failed.
    """

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
        for feature in ("score_ahead", "dynamic_sampling"):
            if setting(args, feature) and environment_factory is not None:
                raise ValueError(
                    f"{feature} plays a generation back when its scores are there, and environments would be reset by "
                    f"it: set {feature} to {type(setting(args, feature))()}, or use a rollout_func"
                )
        for sentence in fit(args, moved(GRPOTrainer)):
            logger.warning(sentence)
        check_report_by(args, train_dataset, eval_dataset)
        self._connection = connect(args, args.distributed_state) if args is not None else None
        self._submissions = 0
        self._has_trained = False
        if self._connection is not None:
            weakref.finalize(self, self._connection.close)  # also runs when the interpreter exits
            check_data(
                self._connection,
                args,
                train_dataset,
                eval_dataset,
                columns_are_added=rollout_func is not None or environment_factory is not None,
            )
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
        self._use_weights(connection)
        self._provenance = self._describe(connection)
        self._policy = policy_of(setting(self.args, "on_reward_failure"))
        self._failure_rate = FailureRate(setting(self.args, "max_failure_rate"), setting(self.args, "failure_window"))
        self._empty_steps = SkipEmptySteps()
        for callback in (
            provenance.ProvenanceCallback(self._provenance),
            StopOnFailures(self._failure_rate),
            self._empty_steps,
        ):
            self.add_callback(callback)
        names = ", ".join(scorer.name for scorer in connection.scorers)
        logger.info(f"rewards come from {connection.client.endpoint}: {names}")

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

    # ------------------------------------------------------------------------------------------- stopping and resuming

    def train(self, *args: Any, **kwargs: Any) -> Any:
        if self._connection is not None:
            if self._has_trained:
                self._begin_new_run(self._connection)
            self._has_trained = True
        result = super().train(*args, **kwargs)
        if self._connection is not None and self._failure_rate.cause is not None:
            raise ScoringFailedError(f"training stopped on every rank, since {self._failure_rate.cause}")
        return result

    def _begin_new_run(self, connection: Connection) -> None:
        """Makes everything that a run leaves in the trainer what it is in a new one; weights and optimizer stay."""
        self._connection = reconnect(connection, self.args, RankOf(self))
        provenance.begin(self._provenance, self._describe(self._connection))
        self._use_weights(self._connection)
        self._submissions = 0
        self._failure_rate.begin()
        assert self._empty_steps is not None
        self._empty_steps.begin()
        # TRL keeps these over runs (TRL 1.16, grpo_trainer.py:948, 951, 1080, 1097): the rest of a generation, and the
        # metrics of a step that did not end.
        self._step, self._buffered_inputs, self._current_train_step_time = 0, None, 0.0
        for unfinished in (*self._metrics.values(), self._pending_metrics, self._pending_extra_logs):
            unfinished.clear()

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        before = provenance.read(Path(checkpoint)) if checkpoint and self._connection is not None else None
        changes = provenance.carry_on(self._provenance, before, self.state.global_step) if before else []
        if changes:
            logger.warning(
                f"{checkpoint} was trained on rewards of another configuration of the reward service: "
                + "; ".join(changes)
            )


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list) else [value]
