"""Progress and the metrics file, with real trainer states."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from transformers import TrainerControl, TrainerState, TrainingArguments

from grpo_plugin.cli.callbacks import MetricsFile, ProgressReport, format_duration, summarise

LOGS = {"reward": 0.5, "completions/mean_length": 12.4, "kl": 0.0123, "reward/exposed_wait_s": 0.25}


def state(step: int, *, rank_zero: bool = True) -> TrainerState:
    return TrainerState(global_step=step, max_steps=10, is_world_process_zero=rank_zero)


def tell(callback: ProgressReport, *, rank_zero: bool = True) -> None:
    args: Any = TrainingArguments(use_cpu=True)
    callback.on_train_begin(args, state(0, rank_zero=rank_zero), TrainerControl())
    callback.on_step_end(args, state(5, rank_zero=rank_zero), TrainerControl())
    callback.on_log(args, state(5, rank_zero=rank_zero), TrainerControl(), logs=LOGS)
    callback.on_train_end(args, state(5, rank_zero=rank_zero), TrainerControl())


def test_away_from_a_terminal_each_log_is_one_plain_line() -> None:
    out = io.StringIO()
    tell(ProgressReport(Console(file=out, width=120)))
    assert out.getvalue() == "step 5/10  reward 0.500  length 12  kl 0.0123  wait 0.25s  left 0s\n"


def test_on_a_terminal_there_is_a_bar_with_the_reward() -> None:
    out = io.StringIO()
    tell(ProgressReport(Console(file=out, width=120, force_terminal=True)))
    assert "5/10" in out.getvalue()
    assert "reward 0.500" in out.getvalue()


def test_other_ranks_are_silent() -> None:
    out = io.StringIO()
    tell(ProgressReport(Console(file=out)), rank_zero=False)
    assert out.getvalue() == ""


def test_a_log_without_rewards_says_nothing() -> None:
    assert summarise({"train_runtime": 3.0}) == ""


def test_evaluation_is_told_by_its_own_name() -> None:
    assert summarise({"eval_reward": 0.25, "eval_completions/mean_length": 3.0}) == "eval_reward 0.250  length 3"


@pytest.mark.parametrize(("seconds", "text"), [(42.4, "42s"), (185, "3m05s"), (7620, "2h07m")])
def test_durations_read_as_people_say_them(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_logs_are_appended_as_they_come_by_rank_0_only(tmp_path: Path) -> None:
    args = TrainingArguments(str(tmp_path / "run"), use_cpu=True)
    for step, rank_zero in ((1, True), (1, False), (2, True)):
        MetricsFile().on_log(args, state(step, rank_zero=rank_zero), TrainerControl(), logs={"reward": step / 2})
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["reward"]) for line in lines] == [(1, 0.5), (2, 1.0)]
