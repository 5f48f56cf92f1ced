"""The metrics of an optimizer step, from micro-batches of unequal size."""

from __future__ import annotations

from grpo_plugin.batching.metrics import StepMetrics
from grpo_plugin.batching.rows import MicroBatchStats


def test_metrics_of_a_step_are_means_over_its_tokens_and_rows_minima_and_maxima_as_they_are() -> None:
    low_high = {"clip_ratio/low_min": [], "clip_ratio/high_max": []}
    metrics: dict[str, list[float]] = {"reward": [1.0], "entropy": [], **low_high}
    step = StepMetrics()
    first, second = (
        (2.0, 0.1, 0.2, MicroBatchStats(30, 3, 0, 3, False)),
        (4.0, 0.3, 0.9, MicroBatchStats(10, 1, 1, 1, True)),
    )
    for entropy, low, high, stats in (first, second):
        with step.collected(metrics, stats, sequence_level=False):
            metrics["entropy"].append(entropy)
            metrics["clip_ratio/low_min"].append(low)
            metrics["clip_ratio/high_max"].append(high)
    assert metrics == {"reward": [1.0], "entropy": [2.5], "clip_ratio/low_min": [0.1], "clip_ratio/high_max": [0.9]}


def test_a_filler_does_not_count_in_means_over_rows() -> None:
    metrics: dict[str, list[float]] = {"clip_ratio/low_mean": [], "vespo/phi_seq_mean": []}
    with StepMetrics().collected(metrics, MicroBatchStats(8, 1, 1, 1, True), sequence_level=True):
        metrics["clip_ratio/low_mean"].append(0.5)  # (1 + 0) / 2 rows, the filler's 0 among them
        metrics["vespo/phi_seq_mean"].append(2.0)  # (3 + 1) / 2 rows, the filler's 1 among them
    assert metrics == {"clip_ratio/low_mean": [1.0], "vespo/phi_seq_mean": [3.0]}


def test_a_step_of_fillers_alone_has_no_metrics() -> None:
    metrics: dict[str, list[float]] = {"entropy": []}
    with StepMetrics().collected(metrics, MicroBatchStats(0, 0, 2, 1, True), sequence_level=False):
        metrics["entropy"].append(0.0)
    assert metrics == {"entropy": []}
