"""`difficulty_band`: a run comes back less often to prompts that are too easy or too hard."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from grpo_plugin import RemoteGRPOConfig, RemoteGRPOTrainer
from reward_server.errors import ConfigError
from tests.support.scoring import vowels
from tests.support.training import remote

pytestmark = pytest.mark.slow

# Two prompts a step, so four steps an epoch. `easy` ones are solved by every completion, `fair` ones by half of them.
DATA = Dataset.from_dict({"prompt": [f"{'easy' if number % 2 else 'fair'} {number}" for number in range(8)]})


class Passes:
    """A reward function that notes the prompts of its groups."""

    __name__ = "passes"

    def __init__(self) -> None:
        self.visited: list[str] = []

    def __call__(self, prompts: list[str], **_: Any) -> list[float]:
        self.visited += prompts[::4]
        return [1.0 if prompt.startswith("easy") else float(row % 2) for row, prompt in enumerate(prompts)]


def run(model: str, folder: Path, resume: str | None = None, **changes: Any) -> tuple[Passes, Any]:
    passes = Passes()
    args = remote(folder, **{"difficulty_band": [0.1, 0.9], "max_steps": 12, **changes})
    trainer = RemoteGRPOTrainer(model, reward_funcs=passes, args=args, train_dataset=DATA)
    trainer.train(resume_from_checkpoint=resume)
    return passes, trainer


def test_solved_prompts_are_visited_less_from_the_second_epoch_on(tiny_model: str, tmp_path: Path) -> None:
    passes, trainer = run(tiny_model, tmp_path)
    first, later = Counter(passes.visited[:8]), Counter(passes.visited[8:])
    assert set(first.values()) == {1}
    assert len(passes.visited) == 24
    easy = sum(count for prompt, count in later.items() if prompt.startswith("easy"))
    assert easy == pytest.approx(16 / 5, abs=1)  # 0.25 of 1.25
    logged = [line for line in trainer.state.log_history if "sampling/difficulty" in line]
    assert logged[-1]["sampling/outside_band"] == 0.5
    assert all(line["sampling/difficulty"] == pytest.approx(1 - line["reward"]) for line in logged)


def test_a_run_that_resumes_within_an_epoch_visits_what_the_whole_run_visits(tiny_model: str, tmp_path: Path) -> None:
    whole, trainer = run(tiny_model, tmp_path, save_strategy="steps", save_steps=6)
    resumed, _ = run(tiny_model, tmp_path / "again", str(Path(trainer.args.output_dir) / "checkpoint-6"))
    assert resumed.visited == whole.visited[12:]


def test_without_a_band_prompts_come_as_with_trl(tiny_model: str, tmp_path: Path) -> None:
    banded, _ = run(tiny_model, tmp_path / "banded", max_steps=4)
    plain, trainer = run(tiny_model, tmp_path / "plain", max_steps=4, difficulty_band=None)
    assert plain.visited == banded.visited
    assert not any(name.startswith("sampling/") for line in trainer.state.log_history for name in line)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"difficulty_band": [0.9, 0.1]}, r"the lower one first, such as 0.1 0.9; not \[0.9, 0.1\]"),
        ({"difficulty_band": [0.5]}, r"two pass shares"),
        ({"difficulty_weight": 0.0}, "difficulty_weight is between 0 and 1, not 0.0"),
        ({"difficulty_visits": 0}, "difficulty_visits must be at least 1, not 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, Any], problem: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=problem):
        remote(tmp_path, **changes)


def refused(tiny_model: str, args: RemoteGRPOConfig, rewards: Any, data: Any = DATA) -> str:
    trainer = RemoteGRPOTrainer(tiny_model, reward_funcs=rewards, args=args, train_dataset=data)
    with pytest.raises(ConfigError) as raised:
        trainer.train()
    return str(raised.value)


def test_several_scorers_a_wrong_name_and_a_stream_are_refused(tiny_model: str, tmp_path: Path) -> None:
    args = remote(tmp_path, difficulty_band=[0.1, 0.9])
    assert "set difficulty_scorer to one of passes, vowels" in refused(tiny_model, args, [Passes(), vowels])
    assert "load the training data without streaming" in refused(tiny_model, args, vowels, DATA.to_iterable_dataset())
    args = remote(tmp_path, difficulty_band=[0.1, 0.9], difficulty_scorer="nobody")
    assert "there is no scorer 'nobody' for difficulty_scorer; there are vowels" in refused(tiny_model, args, vowels)
