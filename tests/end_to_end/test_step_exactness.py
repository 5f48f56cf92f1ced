"""Token batches learn what stock TRL learns: the same weights after 5 optimizer steps, on the same seed, to 1e-5.

Half the groups are without signal and lengths are skewed, so that rows are left out, packed, sorted and moved between
ranks. Plain SGD, since Adam divides a gradient that is zero but for rounding by its own size.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.test_ranks import ARGS, largest_difference, start_weights, train
from tests.support.servers import function

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

LOSSES = ("grpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo", "bnpo")
LEVELS = ("token", "sequence")

SGD = {
    "optim": "sgd",
    "learning_rate": 0.02,
    "lr_scheduler_type": "constant",
    "max_grad_norm": 0.0,
    "gradient_accumulation_steps": 2,
    "max_completion_length": 24,
}
# Ratios differ from 1: two optimizer steps a generation, each generation twice.
OFF_POLICY = {"steps_per_generation": 4, "num_iterations": 2}


SPEC_OPTIONS = ("rewards", "rollout", "corrects_for_sampler", "room_bytes")

# The first rank has room for a few rows only, so that both make smaller micro-batches than TRL's after the second step.
AUTO = {"max_tokens_per_micro_batch": "auto", "room_bytes": [200_000, 10**9], "rewards": ["vowels"]}


def pair(model: str, **changes: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The specs of stock TRL and of this trainer, alike but for the micro-batches."""
    options = {"rewards": ["signal_in_half"], "rollout": "skewed"}
    run = {"model": model, **options, **{name: changes.pop(name) for name in SPEC_OPTIONS if name in changes}}
    ours = {**ARGS, **SGD, "token_batches": True, **changes}
    return {**run, "trainer": "stock", "args": dict(ours)}, {**run, "trainer": "remote", "args": dict(ours)}


def differences(folder: Path, accelerate: str, model: str, cases: dict[str, dict[str, Any]]) -> dict[str, float]:
    """How far the weights are from stock TRL's after 5 steps, for each case; all cases in one launch."""
    specs = {}
    for name, changes in cases.items():
        specs[f"stock {name}"], specs[f"ours {name}"] = pair(model, **changes)
    results = train(folder, accelerate, **specs)
    start = start_weights(model)
    for name, (weights, _) in results.items():
        assert largest_difference(weights, start) > 1e-4, f"{name} did not move"
    for name, changes in cases.items():
        log = results[f"ours {name}"][1]["log"][0]
        if changes.get("loss_type") != "bnpo":
            assert log["batches/tokens"] < log["batches/tokens_trl"], name
            assert (log["batches/rows_without_signal"] > 0) == (not {"beta", "rewards"}.intersection(changes)), name
        if "room_bytes" in changes:
            budgets = [log["batches/budget"] for log in results[f"ours {name}"][1]["log"] if "batches/budget" in log]
            assert budgets[-1] < budgets[0], f"{name}: the rank with the least room decides"
    return {name: largest_difference(results[f"ours {name}"][0], results[f"stock {name}"][0]) for name in cases}


def all_losses() -> dict[str, dict[str, Any]]:
    cases: dict[str, dict[str, Any]] = {
        f"{loss} {level}": {"loss_type": loss, "importance_sampling_level": level, **OFF_POLICY}
        for loss, level in itertools.product(LOSSES, LEVELS)
    }
    cases["kl"] = {"beta": 0.1, **OFF_POLICY}
    cases["on policy"] = {"loss_type": "grpo"}
    cases["one micro-batch"] = {"gradient_accumulation_steps": 1, "per_device_train_batch_size": 8}
    cases["a step over generations"] = {"steps_per_generation": 3, "gradient_accumulation_steps": 2}
    cases["padded"] = {"padding_free": False, **OFF_POLICY}
    cases["no shared prefix"] = {"shared_prefix": False, **OFF_POLICY}
    cases["more micro-batches than TRL's"] = {"max_tokens_per_micro_batch": 40, **OFF_POLICY}
    cases["budget learnt from memory"] = {**AUTO, **OFF_POLICY}
    cases["padded, more micro-batches"] = {"padding_free": False, "max_tokens_per_micro_batch": 60, **OFF_POLICY}
    return cases


@pytest.mark.parametrize("accelerate", ["cpu", "cpu_ddp"])
def test_weights_are_stock_trls_for_every_loss_and_level(tiny_model: str, tmp_path: Path, accelerate: str) -> None:
    found = differences(tmp_path, accelerate, tiny_model, all_losses())
    assert max(found.values()) < 1e-5, found


RATIOS_TO_THE_SAMPLER = {
    # Ratios of whole completions have the shape of ratios of tokens on a rank whose completions have one token each.
    "of completions, single tokens on one rank": {
        "vllm_importance_sampling_mode": "sequence_truncate",
        "rollout": "short",
    },
    # TRL adds the logarithms of these up without a mask, so that padding counts.
    "of tokens, vespo": {"vllm_importance_sampling_mode": "token_truncate", "loss_type": "vespo"},
}


def test_with_ratios_to_the_sampling_engine_weights_are_stock_trls(tiny_model: str, tmp_path: Path) -> None:
    specs = {}
    for name, changes in RATIOS_TO_THE_SAMPLER.items():
        made = pair(tiny_model, **{"rewards": ["vowels"], "corrects_for_sampler": True, **changes, **OFF_POLICY})
        specs[f"stock {name}"], specs[f"ours {name}"] = made
    results = train(tmp_path, "cpu_ddp", **specs)
    start = start_weights(tiny_model)
    for name in RATIOS_TO_THE_SAMPLER:
        stock, ours = results[f"stock {name}"][0], results[f"ours {name}"][0]
        assert largest_difference(stock, start) > 1e-4, name
        assert largest_difference(ours, stock) < 1e-5, name


@pytest.mark.parametrize("accelerate", ["cpu", "cpu_ddp"])
def test_with_failed_scores_token_batches_leave_out_what_trls_micro_batches_mask(
    tiny_model: str, tmp_path: Path, serve: Callable[..., Any], accelerate: str
) -> None:
    remote = {"reward_endpoint": [serve(function("flaky")).endpoint], "max_failure_rate": 1.0}
    specs = {}
    cases = {loss: {"loss_type": loss, **OFF_POLICY} for loss in LOSSES}
    cases["kl to the old policy"] = {"beta": 0.1, "kl_anchor": "old", **OFF_POLICY}
    cases["a step over generations"] = {"steps_per_generation": 3, "gradient_accumulation_steps": 2}
    for name, changes in cases.items():
        _, spec = pair(tiny_model, **remote, **changes)
        spec["rewards"] = []
        specs[f"on {name}"], specs[f"off {name}"] = spec, {**spec, "args": {**spec["args"], "token_batches": False}}
    results = train(tmp_path, accelerate, **specs)
    assert sum(log.get("reward/dropped", 0) for log in results["on grpo"][1]["log"]) > 0
    found = {name: largest_difference(results[f"on {name}"][0], results[f"off {name}"][0]) for name in cases}
    assert max(found.values()) < 1e-5, found


@pytest.mark.parametrize("accelerate", ["cpu_zero2", "cpu_zero3"])
def test_weights_are_stock_trls_under_deepspeed(tiny_model: str, tmp_path: Path, accelerate: str) -> None:
    more = {"ddp_backend": "gloo", **OFF_POLICY}
    cases = {
        f"{loss} {level}": {"loss_type": loss, "importance_sampling_level": level, **more}
        for loss, level in zip(LOSSES, itertools.cycle(LEVELS), strict=False)
    }
    cases["more micro-batches than TRL's"] = {"max_tokens_per_micro_batch": 40, **more}
    if accelerate == "cpu_zero2":  # ZeRO-3's parameters do not survive the hooks by which the test measures memory
        cases["budget learnt from memory"] = {**AUTO, **more}
    found = differences(tmp_path, accelerate, tiny_model, cases)
    assert max(found.values()) < 1e-5, found
