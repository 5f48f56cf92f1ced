"""Keeps count of failed scores over steps, and ends training when they are too many.

Owns the window of steps, the decision to stop, and two callbacks of the trainer's loop: one stops training with a
checkpoint, the other skips the update of a step in which every completion was dropped. Also takes metrics without a
value out of the logs. Knows nothing of calls or policies.
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
    """The share of completions with a failed score over the last `window` steps; above `limit` it sets `cause`."""

    def __init__(self, limit: float, window: int):
        self._limit = limit
        self._steps: deque[tuple[int, int]] = deque(maxlen=window)
        self._last: int | None = None
        self.cause: str | None = None

    def begin(self) -> None:
        """Starts an empty window: a new run is not judged by the failures of the one before."""
        self._steps.clear()
        self._last = self.cause = None

    def add(self, failed: int, completions: int, summary: str | None, generation: int | None = None) -> None:
        """Adds a step: its failed completions, all of them, and what failed. Judges once the window is full.

        What is added again under the number of the last `generation` belongs to the same step.
        """
        if generation is not None and generation == self._last:
            before_failed, before = self._steps.pop()
            failed, completions, self.cause = failed + before_failed, completions + before, None
        self._last = generation
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
    """Skips the update of an optimizer step in which every completion was dropped.

    Without a gradient an optimizer leaves weights and state alone. DeepSpeed steps inside `backward`, before any
    callback: there `before_backward` sets the learning rate of that step to 0, and the weights stay as they are.
    `count` is the number of such steps in this run.
    """

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Starts the count of a new run, in which no micro-batch has been seen."""
        self._survived = False
        self._rates: list[float] | None = None
        self.count = 0

    def before_backward(self, survives: bool, optimizer: Any, last_of_step: bool, deepspeed: bool) -> None:
        """Called for each micro-batch; `survives` says whether any completion of it was kept."""
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
