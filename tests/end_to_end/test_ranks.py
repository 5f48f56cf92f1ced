"""Two real ranks under `accelerate launch`, against a real reward server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import function

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

ROOT = Path(__file__).parent.parent.parent
ARGS = {
    "max_steps": 5,
    "per_device_train_batch_size": 4,
    "num_generations": 4,
    "max_completion_length": 12,
    "learning_rate": 1e-2,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "use_cpu": True,
    "bf16": False,
    "activation_checkpointing": False,
    "ddp_timeout": 120,
    "reward_timeout_s": 60.0,
}
_OURS = {"reward_timeout_s", "reward_endpoint", "reward_config", "kl_anchor", "on_reward_failure"}

Serve = Callable[..., Any]


def launch(folder: Path, accelerate: str, **spec: Any) -> tuple[int, str]:
    """Runs the ranks to their end; the exit code and what they printed."""
    folder.mkdir(parents=True, exist_ok=True)
    args = {**ARGS, **spec.pop("args", {})}
    if spec["trainer"] == "stock":
        args = {name: value for name, value in args.items() if name not in _OURS}
    (folder / "spec.json").write_text(json.dumps({**spec, "args": args}))
    config = ROOT / "configs" / "accelerate" / f"{accelerate}.yaml"
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
    if accelerate != "cpu":
        command += ["--main_process_port", "0"]
    command += [str(ROOT / "tests/end_to_end/ranks.py"), str(folder / "spec.json")]
    run = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=360,
        env=environment(),
        check=False,
    )
    return run.returncode, run.stdout


def environment() -> dict[str, str]:
    return {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}


def train(folder: Path, accelerate: str, **spec: Any) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Runs the ranks; the weights they end with, and the log and batches."""
    code, output = launch(folder, accelerate, **spec)
    assert code == 0, output[-4000:]
    weights = torch.load(folder / "spec.pt", weights_only=True)
    return weights, json.loads((folder / "spec.out").read_text())


def largest_difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max((a[name] - b[name]).abs().max().item() for name in a)


def test_on_two_ranks_local_rewards_and_the_same_rewards_from_the_service_give_stock_trls_weights(
    tiny_model: str, tmp_path: Path, serve: Serve
) -> None:
    names = ["vowels", "target_share"]
    stock, _ = train(tmp_path / "stock", "cpu_ddp", trainer="stock", model=tiny_model, rewards=names)
    local, _ = train(tmp_path / "local", "cpu_ddp", trainer="remote", model=tiny_model, rewards=names)
    endpoint = serve(*[function(name) for name in names]).endpoint
    remote, out = train(
        tmp_path / "remote", "cpu_ddp", trainer="remote", model=tiny_model, args={"reward_endpoint": [endpoint]}
    )
    assert out["log"][0]["reward/groups"] == 2
    assert largest_difference(local, stock) == 0.0
    assert largest_difference(remote, stock) == 0.0


def test_a_group_that_straddles_ranks_is_scored_whole_and_once_with_the_advantages_of_one_rank(
    tiny_model: str, tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 2 ranks × 3 rows hold two groups of 3 only if each is on one rank; groups of 6 and 2 × 3 rows straddle both ranks,
    # and with 2 × 2 × 3 rows groups of 4 straddle in the middle.
    for rows, accumulate, generations in [(3, 1, 6), (3, 2, 4)]:
        results = {}
        for name, accelerate, per_device in [("two", "cpu_ddp", rows), ("one", "cpu", 2 * rows)]:
            folder = tmp_path / f"{name}-{generations}"
            seen = tmp_path / f"{name}-{generations}.seen"
            monkeypatch.setenv("SEEN_GROUPS", str(seen))
            endpoint = serve({"type": "group_function", "name": "rank", "function": f"{scoring_file()}:rank_in_group"})
            args = {
                "reward_endpoint": [endpoint.endpoint],
                "per_device_train_batch_size": per_device,
                "gradient_accumulation_steps": accumulate,
                "num_generations": generations,
                "max_steps": 2,
            }
            _, out = train(folder, accelerate, trainer="remote", model=tiny_model, args=args, fixed_rollout=True)
            groups = [json.loads(line) for line in seen.read_text().splitlines()]
            results[name] = (out["batches"], groups)
        batches, groups = results["two"]
        assert batches == results["one"][0]
        assert any(advantage != 0 for advantage in batches[0]["advantages"])
        assert all(len(group["contents"]) == generations for group in groups)
        assert set(Counter(group["id"] for group in groups).values()) == {1}
        sent = sorted(text for batch in batches for text in batch["completions"])
        assert sorted(text for group in groups for text in group["contents"]) == sent


def scoring_file() -> Path:
    return Path(__file__).parent.parent / "scoring.py"


@pytest.mark.parametrize("accelerate", ["cpu_zero1", "cpu_zero2", "cpu_zero3"])
def test_two_ranks_train_against_a_served_reward_under_deepspeed(
    tiny_model: str, tmp_path: Path, serve: Serve, accelerate: str
) -> None:
    endpoint = serve(function("vowels"), function("target_share")).endpoint
    args = {"reward_endpoint": [endpoint], "max_steps": 2}
    weights, out = train(tmp_path / accelerate, accelerate, trainer="remote", model=tiny_model, args=args)
    assert out["log"][1]["reward/groups"] == 2
    start = torch.load(start_weights(tiny_model, tmp_path), weights_only=True)
    assert largest_difference(weights, start) > 0.0


def start_weights(model: str, folder: Path) -> Path:
    from transformers import AutoModelForCausalLM  # noqa: PLC0415

    path = folder / "start.pt"
    state = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).state_dict()
    torch.save(dict(state), path)
    return path


def test_a_failure_that_one_rank_sees_stops_all_ranks_with_the_same_error(
    tiny_model: str, tmp_path: Path, serve: Serve
) -> None:
    endpoint = serve(function("fails_on_eleven")).endpoint
    args = {"reward_endpoint": [endpoint], "max_steps": 50, "on_reward_failure": "raise"}
    code, output = launch(tmp_path / "run", "cpu_ddp", trainer="remote", model=tiny_model, args=args)
    assert code != 0
    assert output.count("ScoringFailedError: training stops on every rank") >= 2, output[-4000:]
    assert "RuntimeError: eleven" in output
