"""`DropFailedTrainer`: an optimizer step from which completions may leave, as if they had never been sampled.

Short overrides around `super()` that do to TRL's batches and gradients what `survivors` says; who leaves is decided by
whoever sets `_dropped_R`. Knows nothing of the service.

Legend: N rows on this rank, R rows of the global batch.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from accelerate.logging import get_logger

from grpo_plugin.rewards.failures import SkipEmptySteps, take_out_metrics_without_value
from grpo_plugin.rewards.survivors import ROW_MEAN_LOSSES, ROWS, SURVIVORS, mask_out, tokens_N, weigh
from grpo_plugin.trainer.kl import KLAnchorTrainer

logger = get_logger(__name__)


class DropFailedTrainer(KLAnchorTrainer):
    """TRL's trainer in which the rows `_dropped_R` of a generation do not count."""

    _dropped_R: torch.Tensor | None = None
    _step_rows = (0.0, 0.0)  # of the optimizer step so far, over all ranks: its rows, and the survivors
    _without_value: frozenset[str] | set[str] = frozenset()  # the metrics that the last log left out
    _empty_steps: SkipEmptySteps | None = None  # set where rows may leave at all

    def train(self, *args: Any, **kwargs: Any) -> Any:
        self._dropped_R, self._step_rows = None, (0.0, 0.0)  # what a run that was stopped within a step may have left
        return super().train(*args, **kwargs)

    def _drop(self, batch: dict[str, Any], dropped_R: torch.Tensor) -> None:
        """Makes the batch what it would be, had the dropped completions never been sampled."""
        rows = len(batch["completion_mask"])
        start = self.accelerator.process_index * rows
        mask_out(batch, dropped_R[start : start + rows])
        batch["num_items_in_batch"] = self.accelerator.gather(tokens_N(batch).sum()).sum()
        if self._spans_generations and self.is_deepspeed_enabled:
            logger.warning_once(
                f"loss {self.loss_type!r} is a mean over the survivors of a generation, not of the optimizer step: "
                "under DeepSpeed that takes steps_per_generation to be a multiple of gradient_accumulation_steps"
            )

    @property
    def _mode(self) -> str:
        return "train" if self.model.training else "eval"

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self._empty_steps is not None:
            metrics = self._metrics[self._mode]
            self._without_value = take_out_metrics_without_value(metrics)
            if self._mode == "train" and metrics:  # here, after the optimizer step, which is what may have been empty
                metrics["reward/steps_without_update"] = [self._empty_steps.count]
        super().log(logs, start_time)

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        metrics = super().evaluate(*args, **kwargs)
        # Whatever picks the best checkpoint looks a metric up by its name (transformers 5.23, line 3434): an evaluation
        # without any score has NaN there, which improves on nothing.
        return {**{f"eval_{name}": math.nan for name in self._without_value}, **metrics}

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        # Leans on TRL 1.16 (grpo_trainer.py:1522): a new generation is a new `_buffered_inputs`, a micro-batch an item.
        before = getattr(
            self, "_buffered_inputs", None
        )  # which only a TRL that has moved it lacks: nothing leaves there
        inputs = super()._prepare_inputs(generation_batch)
        if self._dropped_R is not None:
            training = self.model.training
            batches = self._buffered_inputs if training else [inputs]
            if not training or batches is not before:
                weigh(batches, self._window, self.accelerator.num_processes, self._sum_over_ranks)
        return inputs

    @property
    def _window(self) -> int | None:
        """How many micro-batches a row mean spans; None where `training_step` weighs the whole step."""
        if not self.model.training:
            return 1
        late = self._spans_generations and not self.is_deepspeed_enabled
        return None if late else self.args.gradient_accumulation_steps

    @property
    def _spans_generations(self) -> bool:
        """Whether an optimizer step means over rows of several generations, whose survivors are known late."""
        spans = self.args.steps_per_generation % self.args.gradient_accumulation_steps != 0
        return spans and self.loss_type in ROW_MEAN_LOSSES

    def _sum_over_ranks(self, values: torch.Tensor) -> torch.Tensor:
        return self.accelerator.reduce(values, reduction="sum")

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        # Where a step spans generations the gradients are complete here, reduced and not yet clipped.
        loss: torch.Tensor = super().training_step(model, inputs, num_items_in_batch)
        if self._empty_steps is not None and self.accelerator.sync_gradients:
            rows, kept = self._step_rows
            self._step_rows = (0.0, 0.0)
            if self._spans_generations and not self.is_deepspeed_enabled and 0 < kept < rows:
                for parameter in model.parameters():
                    if parameter.grad is not None:
                        parameter.grad.mul_(rows / kept)
        return loss

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        if self._empty_steps is not None and self.model.training:
            self._count(inputs, self._empty_steps)
        return super()._compute_loss(model, inputs)

    def _count(self, inputs: dict[str, Any], empty_steps: SkipEmptySteps) -> None:
        """Notes the rows of the optimizer step so far and who of them survives, before the micro-batch's backward."""
        here = float(inputs.get(ROWS, len(inputs["advantages"])) * self.accelerator.num_processes)
        kept = inputs.get(SURVIVORS, here)
        last = self.accelerator.sync_gradients
        empty_steps.before_backward(kept > 0, self.optimizer, last, self.is_deepspeed_enabled)
        self._step_rows = (self._step_rows[0] + here, self._step_rows[1] + kept)
