"""A budget that is learnt from memory: it follows the room there is, and nothing else of training changes."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.logging import MultiProcessAdapter
from trl import GRPOTrainer

from grpo_plugin import RemoteGRPOConfig, RemoteGRPOTrainer
from tests.support import scoring
from tests.support.builders import save_tiny_model
from tests.support.memory import SavedTensors
from tests.support.training import largest_difference, train_skewed

pytestmark = pytest.mark.slow

AUTO = {"max_tokens_per_micro_batch": "auto"}


def metered(room_bytes: int) -> type[RemoteGRPOTrainer]:
    """The trainer, on a device with so much room."""
    return type("Metered", (RemoteGRPOTrainer,), {"_memory_meter": SavedTensors(room_bytes)})


def logged(trainer: Any, name: str) -> list[float]:
    return [log[f"batches/{name}"] for log in trainer.state.log_history if f"batches/{name}" in log]


def test_with_room_micro_batches_become_fewer_and_larger_and_with_little_more_and_smaller(
    tiny_model: str, tmp_path: Path
) -> None:
    run = {"reward": scoring.vowels, "max_steps": 4}
    stock = train_skewed(GRPOTrainer, tmp_path, tiny_model, **run)
    roomy, narrow = (train_skewed(metered(room), tmp_path, tiny_model, **AUTO, **run) for room in (10**12, 100_000))
    # Learnt in the second step, after the optimizer has allocated its state.
    assert logged(roomy, "micro_batches")[:2] == logged(narrow, "micro_batches")[:2]
    assert logged(roomy, "micro_batches")[-1] < logged(roomy, "micro_batches")[0]
    assert logged(narrow, "micro_batches")[-1] > logged(narrow, "micro_batches")[0]
    assert roomy._memory_meter.begun_steps == 3, "each step but the first"
    for ours in (roomy, narrow):
        assert largest_difference(ours, stock) < 2e-6


def test_measuring_changes_no_weight_and_no_random_number(tmp_path: Path) -> None:
    # A step is one micro-batch whatever the budget, so that dropout draws the same numbers.
    model = str(save_tiny_model(tmp_path / "model", attention_dropout=0.2))
    one = {"reward": scoring.vowels, "gradient_accumulation_steps": 1, "per_device_train_batch_size": 16}
    measured = train_skewed(metered(10**12), tmp_path, model, **AUTO, **one)
    random_numbers = torch.get_rng_state()
    plain = train_skewed(RemoteGRPOTrainer, tmp_path, model, **one)
    assert torch.equal(random_numbers, torch.get_rng_state())
    assert logged(measured, "budget")[-1] != logged(plain, "budget")[-1]
    assert largest_difference(measured, plain) == 0.0


def test_where_there_is_no_device_memory_it_is_said_once_and_budgets_stay_stock_trls(
    tiny_model: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    MultiProcessAdapter.warning_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        ours = train_skewed(RemoteGRPOTrainer, tmp_path, tiny_model, **AUTO)
    assert caplog.text.count("max_tokens_per_micro_batch 'auto' measures the memory of CUDA devices; on cpu") == 1
    plain = train_skewed(RemoteGRPOTrainer, tmp_path, tiny_model)
    assert largest_difference(ours, plain) == 0.0
    assert logged(ours, "budget") == logged(plain, "budget")


@pytest.mark.parametrize(("given", "found"), [("auto", "auto"), ("4096", 4096), (4096, 4096), (None, None)])
def test_a_budget_is_a_number_or_auto_also_as_text(tmp_path: Path, given: Any, found: Any) -> None:
    config = RemoteGRPOConfig(str(tmp_path), max_tokens_per_micro_batch=given, use_cpu=True, bf16=False)
    assert config.max_tokens_per_micro_batch == found


@pytest.mark.parametrize("given", ["most", 0, "0", 1.5])
def test_anything_else_is_refused_with_the_way_out(tmp_path: Path, given: Any) -> None:
    with pytest.raises(ValueError, match="max_tokens_per_micro_batch must be a number of at least 1, or 'auto', not"):
        RemoteGRPOConfig(str(tmp_path), max_tokens_per_micro_batch=given, use_cpu=True, bf16=False)
