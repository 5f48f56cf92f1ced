"""What is leant on in TRL: the installed one has it all, and one in which a part has moved is told and not guessed at.

A TRL that has moved is the installed one's own code, in which a text is replaced.
"""

from __future__ import annotations

import importlib.util
import inspect
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trl
from trl import GRPOTrainer

from grpo_plugin import RemoteGRPOTrainer
from grpo_plugin.trainer import installed_trl
from grpo_plugin.trainer.installed_trl import fit, moved
from reward_server.errors import ConfigError
from tests.support.builders import make_dataset
from tests.support.training import remote

ROOT = Path(__file__).parents[3]

BUFFER = ("self._buffered_inputs", "self._kept_inputs")
RETURNED = ("return prompt_ids, completion_ids, tool_mask", "return completion_ids, prompt_ids, tool_mask")
ANCHOR = ("if self.beta == 0.0", "if not self.beta")
MOVES = {
    BUFFER: {"on_reward_failure", "token_batches"},
    RETURNED: {"a reward service", "score_ahead", "record_rewards", "dynamic_sampling"},
    ("prompts, completions, completion_ids_list):", "prompts, completions, ids):"): {"the trainer"},
    ("logits_to_keep,\n        batch_size=None", "width,\n        batch_size=None"): {"the trainer"},
    ('"num_items_in_batch": num_', '"items": num_'): {"on_reward_failure", "token_batches"},
    ("self.args.steps_per_generation * self.num_iterations", "self.args.steps_per_generation"): {
        "score_ahead",
        "dynamic_sampling",
    },
    ANCHOR: {"kl_anchor"},
    ("self._step += 1", "self._step += 1  # a comment is no move"): set(),
}


def trainer_with(folder: Path, old: str, new: str) -> type:
    """GRPOTrainer of a copy of TRL's own file in which a text is replaced."""
    source = Path(inspect.getfile(GRPOTrainer)).read_text()
    assert old in source
    file = folder / "grpo_trainer_moved.py"
    file.write_text(source.replace(old, new))
    spec = importlib.util.spec_from_file_location("trl.trainer.grpo_trainer_moved", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: type = module.GRPOTrainer
    return found


@pytest.mark.oldest_trl
def test_nothing_has_moved_in_the_installed_trl() -> None:
    assert moved(GRPOTrainer) == {}, f"TRL {trl.__version__} moved what these features lean on: they must follow"


@pytest.mark.parametrize("move", MOVES, ids=lambda move: move[0])
def test_a_part_that_has_moved_is_missed_by_the_features_that_lean_on_it(tmp_path: Path, move: tuple[str, str]) -> None:
    assert set(moved(trainer_with(tmp_path, *move))) == MOVES[move]


def test_a_trainer_without_source_has_nothing_that_can_be_relied_on() -> None:
    assert set(moved(type("Compiled", (), {}))) >= {"the trainer", "a reward service", "token_batches"}


def test_what_can_be_switched_off_is_off_and_said(tmp_path: Path) -> None:
    args = remote(tmp_path, token_batches=True, record_rewards=True)
    told = fit(args, moved(trainer_with(tmp_path, *BUFFER)))
    assert (args.token_batches, args.record_rewards) == (False, True)
    assert told == [f"TRL {trl.__version__} has moved the micro-batches of a generation: token_batches is off"]
    told = fit(args, moved(trainer_with(tmp_path, *RETURNED)))
    assert args.record_rewards is None
    assert told == [f"TRL {trl.__version__} has moved what _generate returns: record_rewards is off"]


@pytest.mark.parametrize(
    ("move", "changes", "words"),
    [
        (
            RETURNED,
            {"reward_endpoint": "a:1"},
            "what _generate returns, on which a reward service rests: install another",
        ),
        (BUFFER, {"reward_endpoint": "a:1"}, "set on_reward_failure to 'raise'"),
        (
            ("if self.beta == 0.0", "if not self.beta"),
            {"kl_anchor": "old", "beta": 0.1},
            "set kl_anchor to 'reference'",
        ),
    ],
)
def test_where_rewards_or_the_loss_would_be_wrong_training_is_refused(
    tmp_path: Path, move: tuple[str, str], changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        fit(remote(tmp_path, **changes), moved(trainer_with(tmp_path, *move)))


def test_failures_that_end_training_need_no_part_of_dropping(tmp_path: Path) -> None:
    args = remote(tmp_path, reward_endpoint="a:1", on_reward_failure="raise")
    assert fit(args, moved(trainer_with(tmp_path, *BUFFER))) == []


def test_a_loss_that_is_not_known_keeps_trls_micro_batches(tmp_path: Path) -> None:
    args = remote(tmp_path, token_batches=True)
    args.loss_type = "new"
    assert "loss_type 'new' is not one of bnpo, cispo" in fit(args, {})[0]
    assert not args.token_batches


def test_the_trainer_looks_before_it_connects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without = tuple(part for part in installed_trl.PARTS if part.name != "what _generate returns")
    gone = installed_trl.Part("what _generate returns", ("a reward service",), lambda _: False)
    monkeypatch.setattr(installed_trl, "PARTS", (*without, gone))
    with pytest.raises(ConfigError, match="has moved what _generate returns"):
        RemoteGRPOTrainer("none", args=remote(tmp_path, reward_endpoint="a:1"), train_dataset=make_dataset())


@pytest.mark.slow
def test_under_a_trl_that_has_moved_training_is_trls_to_the_bit_and_says_why(tmp_path: Path, tiny_model: str) -> None:
    package = shutil.copytree(Path(trl.__file__).parent, tmp_path / "trl", ignore=shutil.ignore_patterns("__pycache__"))
    file = package / "trainer/grpo_trainer.py"
    file.write_text(file.read_text().replace(*BUFFER))
    command = [sys.executable, "-m", "tests.support.moved_trl", tiny_model, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    done = subprocess.run(command, check=True, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200)
    assert done.stdout.splitlines()[-1] == f"{package} 0.0"
    assert "has moved the micro-batches of a generation: token_batches is off" in done.stderr
