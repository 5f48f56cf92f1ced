"""Lengths, waits and counts of several rounds are those of all their rows together."""

from __future__ import annotations

import math
from collections import defaultdict

import pytest

from grpo_plugin.sampling.round_metrics import Noted, grown, merged


def lengths(rows: list[int], terminated: list[int]) -> dict[str, list[float]]:
    """As TRL logs them (TRL 1.16, grpo_trainer.py:2285)."""
    ended = terminated or [0]
    return {
        "completions/mean_length": [sum(rows) / len(rows)],
        "completions/min_length": [min(rows)],
        "completions/max_length": [max(rows)],
        "completions/clipped_ratio": [1 - len(terminated) / len(rows)],
        "completions/mean_terminated_length": [sum(ended) / len(ended)],
        "completions/min_terminated_length": [min(ended)],
        "completions/max_terminated_length": [max(ended)],
    }


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (([4, 9, 2, 9], [4, 2]), ([9, 1], [1])),
        (([9, 9], []), ([3, 5, 9], [3, 5])),
        (([9, 9], []), ([9], [])),
    ],
)
def test_lengths_of_two_rounds_are_what_trl_would_have_logged_of_all_rows(
    one: tuple[list[int], list[int]], other: tuple[list[int], list[int]]
) -> None:
    parts = [Noted(lengths(*part), len(part[0])) for part in (one, other)]
    together = {name: values[0] for name, values in lengths(one[0] + other[0], one[1] + other[1]).items()}
    assert merged(parts) == pytest.approx(together)


def test_waits_groups_and_statuses_add_up_and_the_latency_is_the_longest() -> None:
    parts = [
        Noted({"reward/exposed_wait_s": [0.5], "reward/latency_s": [2.0], "reward/groups": [4]}, 8),
        Noted({"reward/exposed_wait_s": [0.25], "reward/latency_s": [1.0], "reward/status/failed": [3]}, 8),
    ]
    expected = {"reward/exposed_wait_s": 0.75, "reward/latency_s": 2.0, "reward/groups": 4, "reward/status/failed": 3}
    assert merged(parts) == expected


def test_tool_failures_are_a_share_of_all_calls() -> None:
    parts = [
        Noted({"tools/call_frequency": [2.0], "tools/failure_frequency": [0.5]}, 4),
        Noted({"tools/call_frequency": [0.0], "tools/failure_frequency": [0.0]}, 4),
    ]
    assert merged(parts) == {"tools/call_frequency": 1.0, "tools/failure_frequency": 0.5}


def test_what_has_no_value_counts_nowhere() -> None:
    assert merged([Noted({"mine": [math.nan]}, 4), Noted({"mine": [2.0]}, 4)]) == {"mine": 2.0}


def test_what_was_appended_leaves_trls_metrics_and_no_empty_list_stays() -> None:
    metrics: dict[str, list[float]] = defaultdict(list, {"reward": [1.0], "num_tokens": [5.0]})
    before = {name: len(values) for name, values in metrics.items()}
    metrics["reward"].append(2.0)
    metrics["kl"].append(3.0)
    metrics["num_tokens"] = [9.0]
    assert dict(grown(before, metrics)) == {"reward": [2.0], "kl": [3.0]}
    assert metrics == {"reward": [1.0], "num_tokens": [9.0]}
