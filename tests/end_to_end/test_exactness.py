"""A failed completion counts as never sampled: advantages and gradients are those of the batch without it."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.launching import launch
from tests.support.servers import function

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

SIZE = 4  # completions of a group
ARGS = {
    "max_steps": 1,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "steps_per_generation": 4,  # two optimizer steps a generation, so that the second has its own survivors
    "num_generations": SIZE,
    "max_completion_length": 10,
    "scale_rewards": "group",
    "report_to": "none",
    "save_strategy": "no",
    "disable_tqdm": True,
    "use_cpu": True,
    "bf16": False,
    "activation_checkpointing": False,
    "ddp_timeout": 120,
    "reward_timeout_s": 60.0,
}


@pytest.mark.parametrize(("ranks", "accelerate"), [(1, "cpu"), (2, "cpu_ddp")])
def test_at_30_percent_failures_advantages_and_gradients_are_those_of_the_batch_without_the_failed(
    tiny_model: str, tmp_path: Path, serve: Callable[..., Any], ranks: int, accelerate: str
) -> None:
    spec = {"model": tiny_model, "args": {**ARGS, "reward_endpoint": [serve(function("flaky")).endpoint]}}
    code, output = launch(accelerate, "exactness.py", tmp_path, spec=spec)
    assert code == 0, output[-4000:]
    report = json.loads((tmp_path / "spec" / "spec.out").read_text())

    assert report["rows"] == 16 * ranks
    assert 0 < report["kept"] < report["rows"]
    uneven = {kept for rank in report["kept_by_micro_batch"] for kept in rank}
    assert len(uneven) > 1, "micro-batches with equal survivors would not tell a wrong mean from a right one"
    assert len(report["differences"]) == 7 * 2 * 2 * 2
    assert max(report["differences"].values()) < 1e-5, report["differences"]
    assert report["advantages"] == pytest.approx(expected_advantages(report["rewards"]), abs=1e-5)


def expected_advantages(rewards: list[float]) -> list[float]:
    """(r - mean) / (std + 1e-4) over each group's survivors, 0 for the dropped."""
    advantages = []
    for start in range(0, len(rewards), SIZE):
        group = rewards[start : start + SIZE]
        alive = [reward for reward in group if not math.isnan(reward)]
        if alive:
            mean, std = statistics.mean(alive), statistics.stdev(alive)
        advantages += [0.0 if math.isnan(reward) else (reward - mean) / (std + 1e-4) for reward in group]
    return advantages
