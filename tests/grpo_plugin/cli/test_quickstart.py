"""The quickstart: its task in small numbers, and the whole of it as a person runs it."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from grpo_plugin.cli.main import main
from grpo_plugin.cli.quickstart import task
from grpo_plugin.cli.quickstart.rewards import constant, letters_in_place

ROOT = Path(__file__).parents[3]


def test_held_out_words_are_not_among_those_trained_on() -> None:
    words = task.make_task(random.Random(0), train_words=2000, held_out_words=200)
    assert (len(set(words.train)), len(set(words.held_out))) == (2000, 200)
    assert not set(words.train) & set(words.held_out)


def test_the_teacher_sorts_four_letters_and_mostly_copies_the_rest() -> None:
    rng = random.Random(0)
    assert task.careless_answer("dbca", rng) == "abcd"
    shown = [task.careless_answer("dbcafe", rng) for _ in range(1000)]
    assert set(shown) == {"abcdef", "abcdfe"}
    assert 0.65 < shown.count("abcdfe") / 1000 < 0.75


def test_partial_credit_is_the_share_of_letters_in_place() -> None:
    # abdc: a and b stand right, 2 of 4. abcde: 4 of 5, one too many. "": none.
    assert letters_in_place(["abcd", "abdc", "abcde", ""], ["abcd"] * 4) == [1.0, 0.5, 0.8, 0.0]
    assert constant(["a", "b"]) == [0.0, 0.0]


def test_the_tokenizer_gives_back_what_it_was_given() -> None:
    tokenizer = task.make_tokenizer()
    ids = tokenizer("dbca=abcd<eos>").input_ids
    assert len(ids) == 10
    assert tokenizer.decode(ids, skip_special_tokens=True) == "dbca=abcd"


def test_the_rewards_load_without_torch_in_the_services_workers() -> None:
    code = "import sys, grpo_plugin.cli.quickstart.rewards; print({'torch', 'trl'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("kind", ["train", "reward"])
def test_the_configs_of_the_repository_are_those_of_the_package(kind: str) -> None:
    shipped = ROOT / "grpo_plugin" / "cli" / "quickstart" / f"{kind}.yaml"
    assert (ROOT / "configs" / kind / "quickstart.yaml").read_text() == shipped.read_text()


@pytest.mark.parametrize(
    ("arguments", "message"), [(["--max-steps", "0"], "at least 1"), (["--output-dir", "."], "is not empty")]
)
def test_bad_options_are_refused_before_anything_is_made(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    assert main(["quickstart", *arguments]) == 1
    assert message in capsys.readouterr().err


def quickstart(folder: Path, *arguments: str) -> tuple[dict[str, Any], str]:
    """The summary of a run from a folder that is not the repository's, and what it printed."""
    command = [Path(sys.executable).parent / "grpo", "quickstart", "--output-dir", folder, *arguments]
    done = subprocess.run(command, cwd=folder.parent, capture_output=True, text=True, timeout=580, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((folder / "summary.json").read_text()), done.stdout


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_grpo_raises_held_out_accuracy_by_thirty_points(tmp_path: Path) -> None:
    summary, printed = quickstart(tmp_path / "run", "--seed", "0")
    assert summary["seed"] == 0
    assert summary["seconds"] > 0
    assert summary["accuracy_after"] - summary["accuracy_before"] >= 0.30
    assert f"{summary['accuracy_before']:.0%} → {summary['accuracy_after']:.0%}" in printed
    assert f"grpo plot {tmp_path / 'run'}" in printed
    assert main(["plot", str(tmp_path / "run")]) == 0
    assert main(["train", "--config", str(tmp_path / "run" / "train.yaml"), "--output_dir", str(tmp_path / "again"),
                 "--max_steps", "1"]) == 0  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_with_a_constant_reward_accuracy_does_not_rise(tmp_path: Path) -> None:
    # Fewer steps suffice: with the real reward the same number brings over 30 points.
    summary, _ = quickstart(tmp_path / "run", "--seed", "0", "--constant-reward", "--max-steps", "40")
    assert summary["constant_reward"]
    assert summary["accuracy_after"] <= summary["accuracy_before"] + 0.02
