"""dynamic_sampling learns what stock TRL learns that is given just the groups that were trained on, in their order.

A run with it is recorded, and stock TRL trains on the recording: same weights after 5 optimizer steps to 1e-5, on one
rank and on two, whatever the loss. Half of the prompts never have signal.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.test_ranks import ARGS, largest_difference, start_weights, train
from tests.end_to_end.test_step_exactness import LOSSES, OFF_POLICY, SGD
from tests.support.servers import function

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

DYNAMIC = {"dynamic_sampling": True, "max_group_age": 8, "oversample": 1.5}


def specs_of(folder: Path, model: str, name: str, changes: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The specs of a run that samples, and of stock TRL's that plays what was trained on."""
    options = {"model": model, "corrects_for_sampler": changes.pop("corrects_for_sampler", False)}
    common = {**ARGS, **SGD, **changes}
    local = [] if "reward_endpoint" in changes else ["signal_in_half"]
    rewards = {**options, "rewards": local, "rollout": "skewed"}
    plain = {key: value for key, value in common.items() if key not in DYNAMIC}
    return {
        f"ours {name}": {**rewards, "trainer": "remote", "args": {**DYNAMIC, "token_batches": True, **common}},
        f"stock {name}": {
            **options,
            "trainer": "stock",
            "plays": str(folder / f"ours {name}" / "spec.tape"),
            "args": plain,
        },
    }


def differences(folder: Path, accelerate: str, model: str, cases: dict[str, dict[str, Any]]) -> dict[str, float]:
    specs: dict[str, dict[str, Any]] = {}
    for name, changes in cases.items():
        specs |= specs_of(folder, model, name, dict(changes))
    results = train(folder, accelerate, **specs)
    start = start_weights(model)
    for name, (weights, _) in results.items():
        assert largest_difference(weights, start) > 1e-4, f"{name} did not move"
    return {name: largest_difference(results[f"ours {name}"][0], results[f"stock {name}"][0]) for name in cases}


def tapes(folder: Path, cases: dict[str, dict[str, Any]]) -> list[list[dict[str, Any]]]:
    return [json.loads((folder / f"ours {name}" / "spec.tape").read_text()) for name in cases]


def has_signal(generation: dict[str, Any], size: int) -> list[bool]:
    scores = [score for (score,) in generation["scores"]]
    return [len(set(scores[start : start + size])) > 1 for start in range(0, len(scores), size)]


@pytest.mark.parametrize("accelerate", ["cpu", "cpu_ddp"])
def test_weights_are_those_of_stock_trl_given_just_the_kept_groups(
    tiny_model: str, tmp_path: Path, accelerate: str
) -> None:
    cases: dict[str, dict[str, Any]] = {loss: {"loss_type": loss, **OFF_POLICY} for loss in LOSSES}
    cases["on policy"] = {"max_group_age": 0}
    cases["kl"] = {"beta": 0.1, **OFF_POLICY}
    if accelerate == "cpu_ddp":  # 6 rows on each rank: the second of three groups lies on both
        straddling = {"per_device_train_batch_size": 3, **OFF_POLICY, "steps_per_generation": 2}
        cases["a group on two ranks"] = straddling
        cases["groups that ranks share in twos only"] = {**straddling, "num_generations": 3}
    cases["ratios to the sampling engine"] = {"corrects_for_sampler": True, **OFF_POLICY}
    cases["no rounds to spare"] = {"max_sampling_rounds": 1, "oversample": 1.0, **OFF_POLICY}
    found = differences(tmp_path, accelerate, tiny_model, cases)
    assert max(found.values()) < 1e-5, found
    sizes = [changes.get("num_generations", 4) for changes in cases.values()]
    recorded = [(part, size) for tape, size in zip(tapes(tmp_path, cases), sizes, strict=True) for part in tape]
    assert any(generation["has_old"] for generation, _ in recorded), "groups of an earlier policy too"
    kept = [all(has_signal(generation, size)) for generation, size in recorded]
    assert sum(kept) > len(kept) / 2, "most batches could be filled"


@pytest.mark.parametrize("accelerate", ["cpu", "cpu_ddp"])
def test_with_a_service_and_a_batch_ahead_too(
    tiny_model: str, tmp_path: Path, serve: Callable[..., Any], accelerate: str
) -> None:
    endpoint = {"reward_endpoint": [serve(function("signal_in_half")).endpoint], **OFF_POLICY}
    cases = {"on policy": endpoint, "ahead": {"score_ahead": 1, **endpoint}}
    found = differences(tmp_path, accelerate, tiny_model, cases)
    assert max(found.values()) < 1e-5, found
    assert all(generation["has_old"] for generation in tapes(tmp_path, cases)[1])


@pytest.mark.parametrize("accelerate", ["cpu_zero2", "cpu_zero3"])
def test_under_deepspeed_too(tiny_model: str, tmp_path: Path, accelerate: str) -> None:
    more = {"ddp_backend": "gloo", **OFF_POLICY}
    cases = {loss: {"loss_type": loss, **more} for loss in ("grpo", "dapo", "sapo")}
    found = differences(tmp_path, accelerate, tiny_model, cases)
    assert max(found.values()) < 1e-5, found
