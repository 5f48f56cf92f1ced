"""Keeps count of failed scores over steps, and ends training when they are too many.

Owns the window, the verdict, and the two callbacks by which the trainer's loop hears of it: to stop with a checkpoint,
and to skip the update of a step in which nothing survived. Knows nothing of calls or policies.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


def take_out_metrics_without_value(metrics: dict[str, list[float]]) -> set[str]:
    """Removes the metrics that have only NaN since the last log, in place; returns their names.

    TRL logs them as None (TRL 1.16, GRPOTrainer.log, line 3312), which progress bars, trackers and schedulers do not
    expect. `reward` is one where every score of a logging window has failed.
    """
    empty = {name for name, values in metrics.items() if all(map(math.isnan, values))}
    for name in empty:
        del metrics[name]
    return empty


class FailureRate:
    """The share of completions with a failed score over the last `window` steps; too high, it sets `cause`."""

    def __init__(self, limit: float, window: int):
        self._limit = limit
        self._steps: deque[tuple[int, int]] = deque(maxlen=window)
        self.cause: str | None = None

    def begin(self) -> None:
        """Starts an empty window: a new run is not judged by the failures of the one before."""
        self._steps.clear()
        self.cause = None

    def add(self, failed: int, completions: int, summary: str | None) -> None:
        """A step's numbers, and what failed in it; judged once the window is full."""
        self._steps.append((failed, completions))
        rate = sum(f for f, _ in self._steps) / sum(n for _, n in self._steps)
        if len(self._steps) == self._steps.maxlen and rate > self._limit:
            self.cause = (
                f"{rate:.0%} of the completions of the last {len(self._steps)} steps have a failed score, beyond "
                f"max_failure_rate ({self._limit:.0%}); a checkpoint is written. In the last step, {summary}"
            )


class StopOnFailures(TrainerCallback):
    """Writes a checkpoint and stops at the end of the step in which the failure rate became too high."""

    def __init__(self, rate: FailureRate):
        self._rate = rate

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._rate.cause is not None:
            control.should_save = control.should_training_stop = True


class SkipEmptySteps(TrainerCallback):
    """Makes an optimizer step in which no completion survived a step without an update: weights and state stay.

    Optimizers skip parameters without a gradient. DeepSpeed steps inside `backward`, before any callback: there the
    learning rate is 0 for that step, set by `before_backward`, and the weights stay.
    """

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Starts the count of a new run, in which no micro-batch has been seen."""
        self._survived = False
        self._rates: list[float] | None = None
        self.count = 0

    def before_backward(self, survives: bool, optimizer: Any, last_of_step: bool, deepspeed: bool) -> None:
        """Called for each micro-batch: does any row of its optimizer step survive?"""
        self._survived |= survives
        if last_of_step and deepspeed and not self._survived:
            self._rates = [group["lr"] for group in optimizer.param_groups]
            for group in optimizer.param_groups:
                group["lr"] = 0.0

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not self._survived:
            self.count += 1
            for parameter in kwargs["model"].parameters():
                parameter.grad = None

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._survived = False
        if self._rates is not None:
            for group, rate in zip(kwargs["optimizer"].param_groups, self._rates, strict=True):
                group["lr"] = rate
            self._rates = None
