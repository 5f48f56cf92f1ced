"""What a run shows while it trains: progress with reward and time left, and the file `metrics.jsonl`.

Owns the form of both. Knows nothing of rewards but the names of their metrics. The table of sample completions is TRL's
own option `log_completions`.
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

METRICS_FILE = "metrics.jsonl"


def make_progress(console: Console) -> Progress:
    """A progress bar with steps, time, and the text of its field `note`."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TextColumn("[bold green]{task.fields[note]}"),
        TimeElapsedColumn(),
        TextColumn("[dim]left"),
        TimeRemainingColumn(compact=True),
        console=console,
    )


def format_duration(seconds: float) -> str:
    """Seconds as people say them: 42s, 3m05s, 2h07m."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


class ProgressReport(TrainerCallback):
    """Progress of the run on rank 0: a live bar on a terminal, a line for each log elsewhere."""

    def __init__(self, console: Console | None = None, description: str = "GRPO"):
        self._console = console or Console()
        self._description = description
        self._bar: tuple[Progress, TaskID] | None = None
        self._began_s = 0.0
        self._first_step = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.stop()  # an earlier train() that ended in an error may have left its bar
        self._began_s, self._first_step = time.monotonic(), state.global_step
        if state.is_world_process_zero and self._console.is_terminal:
            progress = make_progress(self._console)
            self._bar = (
                progress,
                progress.add_task(self._description, total=state.max_steps, completed=state.global_step, note=""),
            )
            progress.start()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._bar is not None:
            progress, task = self._bar
            progress.update(task, completed=state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        note = summarise(logs or {})
        if not state.is_world_process_zero or not note:
            return
        if self._bar is not None:
            progress, task = self._bar
            progress.update(task, note=note)
        else:
            left = self._left(state)
            self._console.print(f"step {state.global_step}/{state.max_steps}  {note}{left}", highlight=False)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Ends the live bar. Calling it twice, or after an error, is harmless."""
        if self._bar is not None:
            self._bar[0].stop()
            self._bar = None

    def _left(self, state: TrainerState) -> str:
        done = state.global_step - self._first_step
        if done <= 0 or state.global_step >= state.max_steps:
            return ""
        seconds = (time.monotonic() - self._began_s) / done * (state.max_steps - state.global_step)
        return f"  left {format_duration(seconds)}"


def summarise(logs: dict[str, Any]) -> str:
    """What a person wants to see of a log: reward, length, KL, and waiting where there is any; "" if there is none.

    A log in which every score failed has no reward (TRL logs None): it says so, with the numbers that it has.
    """
    prefix = "eval_" if any(name.startswith("eval_reward") for name in logs) else ""
    if not {f"{prefix}reward", f"{prefix}reward/groups"} & logs.keys():
        return ""
    reward = _number(logs.get(f"{prefix}reward"))
    shown = [f"{prefix}reward {'none (no score)' if reward is None else f'{reward:.3f}'}"]
    for name, label, form in (
        ("completions/mean_length", "length", ".0f"),
        ("kl", "kl", ".3g"),
        ("reward/exposed_wait_s", "wait", ".2f"),
    ):
        value = _number(logs.get(prefix + name))
        if value is not None and (name != "reward/exposed_wait_s" or value >= 0.01):
            shown.append(f"{label} {value:{form}}{'s' if label == 'wait' else ''}")
    return "  ".join(shown)


def _number(value: Any) -> float | None:
    """A metric as a finite number; None where the step has no value for it."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _json_value(value: Any) -> Any:
    """A metric as strict JSON has it: NaN and infinity, which JSON has not, are null."""
    return _number(value) if isinstance(value, float) else value


def _json_default(value: Any) -> Any:
    """What json does not know by itself: scalars of numpy and torch as numbers, anything else as text."""
    try:
        return _number(float(value))
    except (TypeError, ValueError):
        return str(value)


class MetricsFile(TrainerCallback):
    """Appends each log to `metrics.jsonl` of the run folder, on rank 0, so that a run can be drawn while it runs."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if not state.is_world_process_zero or not logs:
            return
        path = Path(args.output_dir) / METRICS_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            line = {"step": state.global_step, "time": time.time(), **logs}
            file.write(json.dumps({name: _json_value(value) for name, value in line.items()}, default=_json_default))
            file.write("\n")
