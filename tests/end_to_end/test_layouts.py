"""The trial at start-up on two ranks: it may take gradients under DDP and ZeRO-3, and all ranks find the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.end_to_end.launching import launch
from tests.support.builders import save_tiny_model

pytestmark = pytest.mark.slow

ARGS = {
    "max_steps": 1,
    "per_device_train_batch_size": 4,
    "num_generations": 4,
    "max_completion_length": 8,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "use_cpu": True,
    "gradient_checkpointing": True,
}


@pytest.mark.parametrize("accelerate", ["cpu_ddp", "cpu_zero3"])
def test_ranks_find_the_same_layout_and_the_trial_leaves_no_gradient(tmp_path: Path, accelerate: str) -> None:
    models = {"apart": save_tiny_model(tmp_path / "qwen2")}
    if accelerate == "cpu_ddp":  # ZeRO-3 gathers each weight for each of the trial's forwards, which takes its time
        models["carries"] = save_tiny_model(tmp_path / "lfm2", kind="lfm2", layer_types=["conv", "full_attention"])
    more = {"ddp_backend": "gloo"} if "zero" in accelerate else {}
    bf16 = accelerate == "cpu_ddp"
    specs = {name: {"model": str(model), "args": {**ARGS, **more, "bf16": bf16}} for name, model in models.items()}
    code, printed = launch(accelerate, "layouts.py", tmp_path, **specs)
    assert code == 0, printed
    for name in specs:
        ranks = json.loads((tmp_path / name / "spec.out").read_text())
        assert len(ranks) == 2
        assert ranks[0] == ranks[1]
        assert ranks[0]["gradients"], name
        assert all(ranks[0]["gradients"])
        assert (ranks[0]["left"], ranks[0]["modes"]) == (0, True)
        assert ("PackedLayout" in ranks[0]["layout"]) == (name == "apart"), ranks[0]
