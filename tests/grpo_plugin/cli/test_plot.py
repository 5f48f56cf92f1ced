"""Reading a run folder and drawing it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from grpo_plugin.cli.plot import draw, moving_average, plot_run, read_metrics
from grpo_plugin.errors import UsageError

LOGS: list[dict[str, Any]] = [
    {"step": 1, "reward": 0.0, "reward_std": 0.5, "rewards/right/mean": 0.0, "kl": 0.0, "reward/exposed_wait_s": 0.1},
    {"step": 2, "reward": 0.5, "reward_std": 0.5, "rewards/right/mean": 0.5, "kl": 0.1, "reward/exposed_wait_s": 0.2},
]


def write_lines(folder: Path, logs: list[dict[str, Any]], tail: str = "") -> Path:
    (folder / "metrics.jsonl").write_text("".join(json.dumps(log) + "\n" for log in logs) + tail)
    return folder


def titles(folder: Path) -> list[str]:
    return [axes.get_title(loc="left") for axes in draw(read_metrics(folder), "run").axes]


def test_a_run_becomes_a_png_in_its_folder(tmp_path: Path) -> None:
    path = plot_run(str(write_lines(tmp_path, LOGS)))
    assert path == tmp_path / "plot.png"
    assert path.read_bytes().startswith(b"\x89PNG")


def test_each_metric_that_was_logged_has_a_panel_and_no_other(tmp_path: Path) -> None:
    assert titles(write_lines(tmp_path, LOGS)) == [
        "reward",
        "scores",
        "KL to the anchor",
        "reward service (seconds a step)",
    ]


def test_a_killed_run_with_half_a_line_is_drawn(tmp_path: Path) -> None:
    metrics = read_metrics(write_lines(tmp_path, LOGS, tail='{"step": 3, "rew'))
    assert metrics.series("reward") == ([1.0, 2.0], [0.0, 0.5])


def test_a_resumed_run_counts_a_step_once_and_the_later_time(tmp_path: Path) -> None:
    metrics = read_metrics(write_lines(tmp_path, [*LOGS, {"step": 2, "reward": 0.9}]))
    assert metrics.series("reward") == ([1.0, 2.0], [0.0, 0.9])


def test_evaluation_joins_the_step_it_belongs_to(tmp_path: Path) -> None:
    metrics = read_metrics(write_lines(tmp_path, [*LOGS, {"step": 2, "eval_reward": 0.7}]))
    assert metrics.series("reward")[1] == [0.0, 0.5]
    assert metrics.series("eval_reward") == ([2.0], [0.7])


def test_a_run_of_stock_trl_is_drawn_from_its_trainer_state(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint-2"
    checkpoint.mkdir()
    (checkpoint / "trainer_state.json").write_text(json.dumps({"log_history": LOGS}))
    assert read_metrics(tmp_path).scorers() == ["right"]


@pytest.mark.parametrize("nothing", [{}, {"rewards/right/mean": None}, {"rewards/right/mean": float("nan")}])
def test_a_step_without_a_value_is_a_gap(tmp_path: Path, nothing: dict[str, Any]) -> None:
    logs = [LOGS[0], {"step": 2, "reward": 1.0, **nothing}, {**LOGS[1], "step": 3}]
    metrics = read_metrics(write_lines(tmp_path, logs))
    steps, values = metrics.series("rewards/right/mean")
    assert steps == [1.0, 2.0, 3.0]
    assert values == [0.0, pytest.approx(float("nan"), nan_ok=True), 0.5]
    assert plot_run(str(tmp_path)).stat().st_size > 0


def test_a_run_that_began_again_in_the_same_folder_is_drawn_alone(tmp_path: Path) -> None:
    first = [{"step": step, "reward": 0.0} for step in range(1, 6)]
    resumed = [{"step": step, "reward": 1.0} for step in (3, 4)]
    metrics = read_metrics(write_lines(tmp_path, [*first, *resumed]))
    assert metrics.series("reward") == ([1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 1.0, 1.0])


@pytest.mark.parametrize(
    ("logs", "output", "message"),
    [([{"step": 1, "loss": 0.1}], None, "has no rewards to draw"), (LOGS, "plot.xyz", "must end in .png")],
)
def test_what_cannot_be_drawn_is_said(tmp_path: Path, logs: Any, output: str | None, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        plot_run(str(write_lines(tmp_path, logs)), output)


def test_the_moving_average_takes_fewer_neighbours_at_the_ends() -> None:
    # window 1: (0+3)/2, (0+3+6)/3, (3+6)/2
    assert moving_average([0.0, 3.0, 6.0], window=lambda n: 1) == [1.5, 3.0, 4.5]


def test_the_moving_average_leaves_gaps_and_does_not_count_them() -> None:
    nan = float("nan")
    smooth = moving_average([1.0, nan, 3.0, 5.0], window=lambda n: 1)
    assert smooth == [1.0, pytest.approx(nan, nan_ok=True), 4.0, 4.0]
