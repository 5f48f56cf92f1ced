"""Two real ranks under `accelerate launch`, against a real reward server."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import torch
from transformers import AutoModelForCausalLM

from reward_server.evaluation.recorded import Record, read_records
from tests.end_to_end.launching import launch
from tests.support.servers import SCORING, function

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

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
    "token_batches": False,  # its own tests, in test_step_exactness.py, are up to rounding
}
OURS = {
    *("reward_timeout_s", "reward_endpoint", "reward_config", "kl_anchor", "on_reward_failure", "max_failure_rate"),
    *("token_batches", "padding_free", "shared_prefix", "max_tokens_per_micro_batch", "score_ahead"),
    *("record_rewards", "dynamic_sampling", "oversample", "max_group_age", "max_sampling_rounds"),
}

Serve = Callable[..., Any]
Weights = dict[str, torch.Tensor]


def run_all(folder: Path, accelerate: str, **specs: dict[str, Any]) -> tuple[int, str]:
    """Runs the ranks to their end, one spec after another; the exit code and what they printed."""
    for spec in specs.values():
        ours = {**ARGS, **spec.get("args", {})}
        stock = {key: value for key, value in ours.items() if key not in OURS}
        spec["args"] = stock if spec["trainer"] == "stock" else ours
    return launch(accelerate, "ranks.py", folder, **specs)


def train(folder: Path, accelerate: str, **specs: dict[str, Any]) -> dict[str, tuple[Weights, dict[str, Any]]]:
    """Runs the ranks; for each spec the weights that it ends with, and its log and batches."""
    code, output = run_all(folder, accelerate, **specs)
    assert code == 0, output[-4000:]
    return {name: result(folder / name) for name in specs}


def result(folder: Path) -> tuple[Weights, dict[str, Any]]:
    return torch.load(folder / "spec.pt", weights_only=True), json.loads((folder / "spec.out").read_text())


def largest_difference(a: Weights, b: Weights) -> float:
    assert a.keys() == b.keys()
    return max((a[name] - b[name]).abs().max().item() for name in a)


def test_on_two_ranks_local_rewards_and_the_same_rewards_from_the_service_give_stock_trls_weights(
    tiny_model: str, tmp_path: Path, serve: Serve
) -> None:
    names = ["vowels", "target_share"]
    endpoint = serve(*[function(name) for name in names]).endpoint
    results = train(
        tmp_path,
        "cpu_ddp",
        stock={"trainer": "stock", "model": tiny_model, "rewards": names},
        local={"trainer": "remote", "model": tiny_model, "rewards": names},
        remote={"trainer": "remote", "model": tiny_model, "args": {"reward_endpoint": [endpoint]}},
    )
    stock, local, remote = (results[name][0] for name in ("stock", "local", "remote"))
    assert results["remote"][1]["log"][0]["reward/groups"] == 2
    assert largest_difference(local, stock) == 0.0
    assert largest_difference(remote, stock) == 0.0
    assert largest_difference(stock, start_weights(tiny_model)) > 0.0


# 2 ranks of 3 rows hold one group of 6, astride both; 2 ranks of 2 × 3 rows hold three groups of 4, the second astride.
STRADDLING = {"whole": (3, 1, 6), "middle": (3, 2, 4)}


def test_a_group_that_straddles_ranks_is_scored_whole_and_once_with_the_advantages_of_one_rank(
    tiny_model: str, tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    for ranks, accelerate in [(1, "cpu"), (2, "cpu_ddp")]:
        specs = {}
        for name, (rows, accumulate, generations) in STRADDLING.items():
            monkeypatch.setenv("SEEN_GROUPS", str(tmp_path / f"{name}-{ranks}.seen"))
            scorer = {"type": "group_function", "name": "rank", "function": f"{SCORING}:rank_in_group"}
            args = {
                "reward_endpoint": [serve(scorer).endpoint],
                "per_device_train_batch_size": rows * 2 // ranks,
                "gradient_accumulation_steps": accumulate,
                "num_generations": generations,
                "max_steps": 2,
                "record_rewards": "all",
            }
            specs[name] = {"trainer": "remote", "model": tiny_model, "args": args, "rollout": "fixed"}
        train(tmp_path / str(ranks), accelerate, **specs)
    for name, (_, _, generations) in STRADDLING.items():
        one, two = (result(tmp_path / str(ranks) / name)[1]["batches"] for ranks in (1, 2))
        assert two == one
        assert any(advantage != 0 for advantage in two[0]["advantages"])
        groups = [json.loads(line) for line in (tmp_path / f"{name}-2.seen").read_text().splitlines()]
        assert all(len(group["contents"]) == generations for group in groups)
        assert set(Counter(group["id"] for group in groups).values()) == {1}
        sent = sorted(text for batch in two for text in batch["completions"])
        assert sorted(text for group in groups for text in group["contents"]) == sent
        first, second = (recorded(tmp_path / str(ranks) / name) for ranks in (1, 2))
        assert [(one.group, one.scores) for one in second] == [(one.group, one.scores) for one in first]
        assert [text for one in second for text in one.group.contents()] == [t for b in two for t in b["completions"]]


def recorded(folder: Path) -> list[Record]:
    """The groups that rank 0 recorded, in the order in which they were trained on."""
    return list(read_records([folder / "run" / "records"]))


@pytest.mark.parametrize("accelerate", ["cpu_zero1", "cpu_zero2", "cpu_zero3"])
def test_two_ranks_train_against_a_served_reward_under_deepspeed(
    tiny_model: str, tmp_path: Path, serve: Serve, accelerate: str
) -> None:
    args = {"reward_endpoint": [serve(function("vowels"), function("target_share")).endpoint], "max_steps": 2}
    run = {"trainer": "remote", "model": tiny_model, "args": {**args, "ddp_backend": "gloo"}}
    weights, out = train(tmp_path, accelerate, run=run)["run"]
    assert out["log"][1]["reward/groups"] == 2
    assert largest_difference(weights, start_weights(tiny_model)) > 0.0


def start_weights(model: str) -> Weights:
    return dict(AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).state_dict())


def test_a_failure_that_one_rank_sees_stops_all_ranks_with_the_same_error(
    tiny_model: str, tmp_path: Path, serve: Serve
) -> None:
    endpoint = serve(function("fails_on_eleven")).endpoint
    args = {"reward_endpoint": [endpoint], "max_steps": 50, "on_reward_failure": "raise"}
    code, output = run_all(tmp_path, "cpu_ddp", run={"trainer": "remote", "model": tiny_model, "args": args})
    assert code != 0
    assert output.count("ScoringFailedError: training stops on every rank") >= 2, output[-4000:]
    assert "RuntimeError: eleven" in output


def test_under_zero2_a_run_with_30_percent_failures_and_a_rank_that_is_3_s_late_goes_to_its_end(
    tiny_model: str, tmp_path: Path, serve: Serve
) -> None:
    args = {
        "reward_endpoint": [serve(function("flaky")).endpoint],
        "reward_timeout_s": 20.0,
        "gradient_accumulation_steps": 2,
        "max_steps": 4,
        "beta": 0.1,
        "ddp_backend": "gloo",
        "max_failure_rate": 1.0,
        "record_rewards": "all",
    }
    run = {"trainer": "remote", "model": tiny_model, "args": args, "late_s": 3.0}
    nothing = {"trainer": "remote", "model": tiny_model, "args": {**args, "max_steps": 2}}
    nothing["args"]["reward_endpoint"] = [serve(function("raises")).endpoint]
    results = train(tmp_path, "cpu_zero2", run=run, nothing=nothing)
    weights, out = results["run"]
    logs = [log for log in out["log"] if "reward/groups" in log]
    assert len(logs) == 4
    dropped = sum(log.get("reward/dropped", 0) for log in logs)
    assert dropped > 0
    rows = pyarrow.parquet.read_table(tmp_path / "run" / "run" / "records").to_pylist()
    failed = [row["scorers"][0]["message"] for row in rows if row["scorers"][0]["status"] == "FAILED"]
    assert len(failed) == dropped == sum(row["dropped"] for row in rows), "those of the other rank, too"
    assert all("unlucky" in message for message in failed)
    assert max(log["reward/exposed_wait_s"] for log in logs) < 20.0
    assert all(torch.isfinite(value).all() for value in weights.values())
    start = start_weights(tiny_model)
    assert largest_difference(weights, start) > 0.0
    # and where nothing at all survives, DeepSpeed, which steps inside backward, moves no weight either
    assert largest_difference(results["nothing"][0], start) == 0.0
