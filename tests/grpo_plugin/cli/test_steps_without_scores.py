"""A logging window in which every score failed: all that shows or writes metrics takes it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import TrainerCallback

from grpo_plugin.cli.callbacks import summarise
from grpo_plugin.cli.plot import plot_run, read_metrics
from grpo_plugin.train import main, train
from tests.grpo_plugin.test_train import RUN
from tests.support.servers import function

pytestmark = pytest.mark.slow


def config(folder: Path, model: str, scorer: str, **options: Any) -> str:
    rows = [{"question": f"say {letter}", "letter": letter} for letter in "abcdefgh"]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "reward.yaml").write_text(yaml.safe_dump({"workers": 1, "scorers": [function(scorer)]}))
    paths = {
        "model_name_or_path": model,
        "dataset_name": str(folder / "rows.jsonl"),
        "reward_config": str(folder / "reward.yaml"),
        "output_dir": str(folder / "run"),
        "max_failure_rate": 1.0,
    }
    (folder / "train.yaml").write_text(yaml.safe_dump({**RUN, **paths, **options}))
    return str(folder / "train.yaml")


def test_a_run_goes_on_through_steps_without_a_score_and_its_plot_has_a_gap(
    tiny_model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"max_steps": 4, "report_to": "tensorboard", "save_strategy": "no"}
    assert main(["--config", config(tmp_path, tiny_model, "fails_in_steps_1_and_2", **options)]) == 0
    out = capsys.readouterr()
    assert "step 2/4  reward none (no score)  length" in out.out
    assert "incorrect so we dropped this attribute" not in out.err  # TensorBoard's warning about a None

    run = tmp_path / "run"
    lines = [json.loads(line, parse_constant=pytest.fail) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "reward" in line] == [1, 4]
    assert [line["step"] for line in lines if "reward/groups" in line] == [1, 2, 3, 4]
    steps, rewards = read_metrics(run).series("reward")
    assert steps == [1, 2, 3, 4]
    assert [math.isnan(reward) for reward in rewards] == [False, True, True, False]
    assert plot_run(str(run)).stat().st_size > 0
    events = EventAccumulator(str(next(run.rglob("events.out.tfevents*"))))
    events.Reload()
    assert [event.step for event in events.Scalars("train/reward")] == [1, 4]


def test_callbacks_and_the_choice_of_the_best_checkpoint_take_an_evaluation_without_a_score(
    tiny_model: str, tmp_path: Path
) -> None:
    seen: list[dict[str, Any]] = []

    class Seen(TrainerCallback):
        def on_log(self, *_: Any, logs: dict[str, Any], **__: Any) -> None:
            seen.append(dict(logs))

    options = {
        "eval_strategy": "steps",
        "eval_steps": 1,
        "eval_size": 4,
        "per_device_eval_batch_size": 4,
        "load_best_model_at_end": True,
        "metric_for_best_model": "reward",
    }
    path = config(tmp_path, tiny_model, "raises", **options)
    trainer = train(["--config", path], callbacks=[Seen()], quiet=True)
    assert trainer.state.global_step == 2
    assert not [log for log in seen if None in log.values()]
    assert any("eval_reward/groups" in log for log in seen)
    assert not any("reward" in log or "eval_reward" in log for log in seen)


@pytest.mark.parametrize("nothing", [None, float("nan")])
def test_a_reward_without_value_is_said_in_words(nothing: float | None) -> None:
    assert summarise({"reward": nothing, "kl": nothing, "completions/mean_length": 3.0}) == (
        "reward none (no score)  length 3"
    )
    assert summarise({"eval_reward/groups": 2.0}) == "eval_reward none (no score)"
