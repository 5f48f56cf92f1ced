"""Draws a run folder's metrics into one PNG.

Owns the reading of a run's metrics (`metrics.jsonl`, else TRL's `trainer_state.json`) and the form of the picture.
Opens no window, and knows nothing of training.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from grpo_plugin.errors import UsageError

Series = tuple[list[float], list[float]]
"""Steps, and the values there."""

COLOURS = ("#3366cc", "#dc7633", "#2e8b57", "#9b59b6", "#7f8c8d", "#c0392b", "#16a085", "#b7950b")
SCORER = re.compile(r"rewards/(?P<name>.+)/mean")


@dataclass(frozen=True)
class Metrics:
    """The logs of a run, one a step, in order."""

    logs: Sequence[Mapping[str, Any]]

    def series(self, name: str) -> Series:
        """A metric's steps and values; both empty if it never had a value.

        A log of the same kind (training, or evaluation) that lacks the value is NaN, which is drawn as a gap.
        """
        is_evaluation = name.startswith("eval_")
        points = [
            (float(log["step"]), _value(log.get(name)))
            for log in self.logs
            if any(_is_metric(key) and key.startswith("eval_") == is_evaluation for key in log)
        ]
        if all(math.isnan(value) for _, value in points):
            return [], []
        return [step for step, _ in points], [value for _, value in points]

    def scorers(self) -> list[str]:
        """The names of the reward functions and scorers, in the order of the log."""
        names = dict.fromkeys(name for log in self.logs for name in log)
        return [match["name"] for name in names if (match := SCORER.fullmatch(name))]


def _is_metric(name: str) -> bool:
    """Whether a log's key is a number of a step; the last log of a run has only `train_…` totals."""
    return name not in ("step", "time", "epoch", "total_flos") and not name.startswith("train_")


def _value(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else math.nan


def plot_run(run_folder: str, output: str | None = None) -> Path:
    """Writes the picture and returns its path. Raises UsageError if the folder has nothing to draw."""
    folder = Path(run_folder)
    metrics = read_metrics(folder)
    path = Path(output) if output else folder / "plot.png"
    if path.suffix.lower() not in (".png", ".pdf", ".svg"):
        raise UsageError(f"--output {path} must end in .png, .pdf or .svg")
    figure = draw(metrics, title=folder.resolve().name)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130, facecolor="white")
    return path


# -------------------------------------------------------------------------------------------------------------- reading


def read_metrics(folder: Path) -> Metrics:
    """The logs of a run, of its last attempt where it was resumed or begun again. Raises UsageError."""
    if not folder.is_dir():
        raise UsageError(f"there is no run folder {folder} (working folder: {Path.cwd()})")
    metrics = Metrics(_by_step(_read_lines(folder / "metrics.jsonl") or _read_state(folder)))
    if not any(metrics.series(name)[0] for name in ("reward", "eval_reward")):
        raise UsageError(
            f"{folder} has no rewards to draw: neither metrics.jsonl nor trainer_state.json there holds any. Give the "
            "output_dir of a run; one that has just begun has something after logging_steps steps"
        )
    return metrics


def _by_step(logs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One log a step, in order; a step has one log of training and one of evaluation.

    Where the steps go back, a later run began there, and what the earlier one logged from that step on is left out.
    """
    by_step: dict[float, dict[str, Any]] = {}
    last = -math.inf
    for log in logs:
        step = log.get("step")
        if step is None:
            continue
        if step < last:
            by_step = {number: found for number, found in by_step.items() if number < step}
        last = step
        by_step.setdefault(step, {}).update(log)
    return list(by_step.values())


def _read_lines(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    # A run that was killed may have left half a line.
    return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]


def _read_state(folder: Path) -> list[dict[str, Any]]:
    states = sorted(folder.glob("checkpoint-*/trainer_state.json"), key=lambda path: path.stat().st_mtime)
    for path in [folder / "trainer_state.json", *reversed(states)]:
        if path.is_file():
            return list(json.loads(path.read_text(encoding="utf-8"))["log_history"])
    return []


# -------------------------------------------------------------------------------------------------------------- drawing


def draw(metrics: Metrics, title: str) -> Figure:
    """A figure with one panel for each kind of metric that the run logged."""
    panels = [panel for panel in (_reward, _parts, _kl, _lengths, _wait, _entropy) if panel(metrics, None)]
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    with matplotlib.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(4.4 * columns, 3.1 * rows + 0.4), layout="constrained")
        FigureCanvasAgg(figure)
        figure.suptitle(title, fontsize=12, fontweight="bold", x=0.01, ha="left")
        for number, panel in enumerate(panels):
            axes = figure.add_subplot(rows, columns, number + 1)
            axes.grid(alpha=0.25, linewidth=0.6)
            axes.set_xlabel("step")
            panel(metrics, axes)
    return figure


# A panel says whether it has data, and draws if it is given axes.


def _reward(metrics: Metrics, axes: Axes | None) -> bool:
    steps, means = metrics.series("reward")
    evaluated = metrics.series("eval_reward")
    if axes is not None:
        axes.set_title("reward", loc="left")
        _band(axes, metrics, "reward", "reward_std", COLOURS[0])
        _line(axes, (steps, means), COLOURS[0], "train, ± std" if evaluated[0] else None)
        if evaluated[0]:
            axes.plot(*evaluated, "o-", color=COLOURS[1], markersize=3.5, linewidth=1.2, label="held out")
            axes.legend(frameon=False, fontsize=8)
    return bool(steps or evaluated[0])


def _parts(metrics: Metrics, axes: Axes | None) -> bool:
    names = metrics.scorers()
    if axes is not None:
        axes.set_title("scores", loc="left")
        for number, name in enumerate(names):
            colour = COLOURS[number % len(COLOURS)]
            _line(axes, metrics.series(f"rewards/{name}/mean"), colour, name)
        axes.legend(frameon=False, fontsize=8)
    return bool(names)


def _kl(metrics: Metrics, axes: Axes | None) -> bool:
    return _single(metrics, axes, "kl", "KL to the anchor", COLOURS[3])


def _entropy(metrics: Metrics, axes: Axes | None) -> bool:
    return _single(metrics, axes, "entropy", "entropy (nats a token)", COLOURS[2])


def _lengths(metrics: Metrics, axes: Axes | None) -> bool:
    steps, means = metrics.series("completions/mean_length")
    if axes is not None:
        axes.set_title("completion length (tokens; min, mean, max)", loc="left")
        _, shortest = metrics.series("completions/min_length")
        _, longest = metrics.series("completions/max_length")
        if len(shortest) == len(longest) == len(steps):
            axes.fill_between(steps, shortest, longest, color=COLOURS[1], alpha=0.15, linewidth=0)
        _line(axes, (steps, means), COLOURS[1])
        axes.set_ylim(bottom=0)
    return bool(steps)


def _wait(metrics: Metrics, axes: Axes | None) -> bool:
    exposed, latency = metrics.series("reward/exposed_wait_s"), metrics.series("reward/latency_s")
    if axes is not None:
        axes.set_title("reward service (seconds a step)", loc="left")
        _line(axes, latency, COLOURS[4], "latency")
        _line(axes, exposed, COLOURS[5], "exposed wait")
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False, fontsize=8)
    return bool(exposed[0])


def _single(metrics: Metrics, axes: Axes | None, name: str, title: str, colour: str) -> bool:
    series = metrics.series(name)
    if axes is not None:
        axes.set_title(title, loc="left")
        _line(axes, series, colour)
    return bool(series[0])


def _line(axes: Axes, series: Series, colour: str, label: str | None = None) -> None:
    """The values, faint where they are many, and their moving average on top; gaps where there is no value."""
    steps, values = series
    smooth = moving_average(values)
    many = len(values) >= 30
    if many:
        axes.plot(steps, values, color=colour, alpha=0.3, linewidth=0.8)
    axes.plot(steps, smooth if many else values, color=colour, linewidth=1.7, label=label)
    alone = [index for index in range(len(values)) if _is_alone(values, index)]
    axes.plot([steps[i] for i in alone], [values[i] for i in alone], ".", color=colour)


def _is_alone(values: Sequence[float], index: int) -> bool:
    """Whether a value has a gap on either side, where a line would not show it."""
    around = [values[i] for i in (index - 1, index + 1) if 0 <= i < len(values)]
    return not math.isnan(values[index]) and all(map(math.isnan, around))


def _band(axes: Axes, metrics: Metrics, mean: str, std: str, colour: str) -> None:
    steps, means = metrics.series(mean)
    _, stds = metrics.series(std)
    if len(means) == len(stds):
        low = [m - s for m, s in zip(means, stds, strict=True)]
        high = [m + s for m, s in zip(means, stds, strict=True)]
        axes.fill_between(steps, low, high, color=colour, alpha=0.12, linewidth=0)


def moving_average(values: Sequence[float], window: Callable[[int], int] = lambda n: max(1, n // 20)) -> list[float]:
    """Each value's mean with its neighbours, as many on either side as `window` says, fewer at the ends.

    NaN, a step without a value, stays NaN and does not count for its neighbours.
    """
    reach = window(len(values))
    around = ([v for v in values[max(0, i - reach) : i + reach + 1] if not math.isnan(v)] for i in range(len(values)))
    return [math.nan if math.isnan(v) else sum(part) / len(part) for v, part in zip(values, around, strict=True)]
