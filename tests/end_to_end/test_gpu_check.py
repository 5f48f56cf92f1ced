"""The check that a person with a GPU runs, small and on the CPU; and its verdict on values that are wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.gpu import verdict
from tests.benchmarks.gpu.classifier import Rate, Served
from tests.benchmarks.gpu.training import Measured
from tests.benchmarks.gpu.zero import Trained

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu_check.py"


def check(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, check=False, timeout=290
    )


@pytest.mark.slow
def test_the_whole_check_runs_on_a_cpu_and_everything_holds(tmp_path: Path) -> None:
    out = tmp_path / "check.json"
    done = check("--device", "cpu", "--tiny", "--out", str(out))
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(out.read_text())
    assert report["machine"]["torch"]
    assert {(each["variant"], each["case"]) for each in report["training"]} >= {
        (who, case) for who in ("stock", "ours") for case in ("half", "full", "equal", "prefix")
    }
    assert [rate["target"] for rate in report["classifier"]["rates"]] == ["each alone", "service", "offline"]
    assert [run["stage"] for run in report["zero"]] == [2, 3]
    assert all(claim["held"] for claim in report["claims"] if claim["must"])


@pytest.mark.slow
def test_without_a_gpu_it_says_how_to_try_it() -> None:
    done = check()
    assert done.returncode == 2
    assert "--device cpu --tiny" in done.stderr


def measured(variant: str, case: str = "half", **changes: Any) -> Measured:
    values = {
        "form": "packed, prompts shared",
        "update_s": 1.0,
        "best_update_s": 1.0,
        "log_probs_s": 1.0,
        "update_tokens": 100,
        "useful_tokens": 90,
        "peak_gib": 10.0,
        "utilisation": 0.5,
        "gradient_distance": 0.017,
    }
    return Measured(variant, case, **{**values, **changes})


def broken(*found: Measured, device: str = "cuda") -> list[str]:
    return [claim.text for claim in verdict.of_training(found, device) if claim.must and not claim.held]


def test_nothing_is_held_against_a_trainer_that_is_as_stock_trl() -> None:
    assert broken(measured("stock"), measured("ours")) == []


def test_a_gradient_that_is_further_from_float32_than_stock_trls_fails_the_check() -> None:
    (text,) = broken(measured("stock"), measured("ours", gradient_distance=0.02))
    assert "gradient 2.00e-02" in text


def test_rows_that_are_not_packed_fail_the_check() -> None:
    (text,) = broken(measured("stock"), measured("ours", form="padded"))
    assert text.endswith("padded")


def test_more_tokens_and_a_slower_update_fail_the_check() -> None:
    texts = broken(measured("stock"), measured("ours", update_tokens=101, update_s=1.25))
    assert [text.split(":")[0] for text in texts] == ["half", "ours, half"]


def test_an_aim_that_is_missed_is_said_and_fails_nothing() -> None:
    claims = verdict.of_training([measured("stock"), measured("ours", peak_gib=11.0)], "cuda")
    assert all(claim.held for claim in claims if claim.must)
    assert [claim.text for claim in claims if not claim.held] == [
        "ours, half: 1.00 × stock TRL's update, aim 10 ×",
        "ours, half: 11.0 GiB, below stock TRL's 10.0",
    ]


def test_scores_that_are_not_those_of_one_request_alone_fail_the_check() -> None:
    rates = [Rate(name, 100.0, 8.0, 0.1, 0.3) for name in ("each alone", "service", "offline")]
    wrong, right = (verdict.of_classifier(Served(rates, "packed", d, 1.0), "cuda") for d in (0.6, 0.1))
    assert [claim.held for claim in wrong if claim.must] == [False]
    assert [claim.held for claim in right] == [True, True, False, False]  # as fast as offline and as one at a time


def test_a_run_under_zero_with_failed_scores_or_without_groups_fails_the_check() -> None:
    runs = [
        Trained(2, 0, 3, 4.0, {}, ""),
        Trained(2, 0, 3, 0.0, {}, ""),
        Trained(3, 0, 3, 4.0, {"timeout": 1.0}, ""),
        Trained(3, None, 3, 4.0, {}, ""),
    ]
    assert [claim.held for claim in verdict.of_zero(runs)] == [True, False, False, False]
