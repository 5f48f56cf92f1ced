"""TRL's metrics of an optimizer step, from micro-batches of unequal size.

TRL appends a number for each micro-batch and logs their mean, which is right where micro-batches are alike. Owns the
weighing of what it appended, and the gathering of rows that are more on one rank than on another. Knows nothing of
where the micro-batches come from but their `MicroBatchStats`.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional

from grpo_plugin.batching.rows import MicroBatchStats

# Metrics with one value a row where the ratio is one of sequences (GRPOTrainer._compute_loss, TRL 1.16, line 3259).
_OF_RATIOS = frozenset({"clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio/region_mean", "cispo_clip_ratio"})
_OF_WEIGHTS = "vespo/phi_seq_mean"


class StepMetrics:
    """The means of a step over what its micro-batches hold: tokens, or rows; minima and maxima as they are."""

    def __init__(self) -> None:
        self._found: dict[str, list[tuple[float, int]]] = defaultdict(list)

    @contextmanager
    def collected(
        self, metrics: dict[str, list[float]], stats: MicroBatchStats, sequence_level: bool
    ) -> Iterator[None]:
        """Takes what the block appends to `metrics`, and appends the step's numbers after its last micro-batch."""
        before = {name: len(values) for name, values in metrics.items()}
        yield
        for name, values in metrics.items():
            for value in values[before.get(name, 0) :]:
                self._found[name].append(_weighed(name, value, stats, sequence_level))
            del values[before.get(name, 0) :]
        if stats.last:
            for name, found in self._found.items():
                metrics[name].extend(_joined(name, found))
            self._found.clear()


def _weighed(name: str, value: float, stats: MicroBatchStats, sequence_level: bool) -> tuple[float, int]:
    if name == _OF_WEIGHTS or (sequence_level and name in _OF_RATIOS):
        if not stats.rows:
            return value, 0
        filler = 1.0 if name == _OF_WEIGHTS else 0.0  # what a row of ratio 1 without advantage counts as
        total = value * (stats.rows + stats.filler_rows) - filler * stats.filler_rows
        return total / stats.rows, stats.rows
    return value, stats.tokens


def _joined(name: str, found: list[tuple[float, int]]) -> list[float]:
    values = [(value, weight) for value, weight in found if weight and not math.isnan(value)]
    if not values:
        return []
    if name.endswith("_min"):
        return [min(value for value, _ in values)]
    if name.endswith("_max"):
        return [max(value for value, _ in values)]
    return [sum(value * weight for value, weight in values) / sum(weight for _, weight in values)]


class UnevenRows:
    """An accelerator whose `gather` takes more rows from one rank than from another; what is missing is NaN.

    TRL gathers a value a row for the minima and maxima of its metrics, which leave NaN out (TRL 1.16, line 3282).
    """

    def __init__(self, accelerator: Any, most_rows: int):
        self._accelerator = accelerator
        self._most_rows = most_rows

    def __getattr__(self, name: str) -> Any:
        return getattr(self._accelerator, name)

    def gather(self, value: torch.Tensor) -> torch.Tensor:
        if value.dim() == 1 and value.is_floating_point():
            value = functional.pad(value, (0, self._most_rows - len(value)), value=math.nan)
        gathered: torch.Tensor = self._accelerator.gather(value)
        return gathered
