"""`grpo quickstart`: makes the task, warms the model up, trains it by GRPO, and shows what it has learnt.

Owns what the user reads, and the run folder. The training itself is `grpo_plugin.train.train` with a config file, as
for a run of the user's own.
"""

from __future__ import annotations

import json
import logging
import random
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
import yaml
from rich.console import Console
from rich.table import Table
from rich.text import Text

from grpo_plugin.cli.callbacks import ProgressReport, format_duration, make_progress
from grpo_plugin.cli.quickstart import task
from grpo_plugin.errors import UsageError
from grpo_plugin.train import train

HELD_OUT_WORDS = 500
TRAIN_WORDS = 20_000
WARM_UP_STEPS = 400
SAMPLES = 6


@dataclass(frozen=True)
class Outcome:
    """Held-out greedy answers before and after GRPO."""

    words: Sequence[str]
    before: Sequence[str]
    after: Sequence[str]

    @property
    def accuracies(self) -> tuple[float, float]:
        return task.accuracy(self.words, self.before), task.accuracy(self.words, self.after)


def run(
    *,
    output_dir: str | None = None,
    seed: int = 0,
    max_steps: int | None = None,
    constant_reward: bool = False,
    console: Console | None = None,
) -> Path:
    """Runs the quickstart; returns the run folder, whose `summary.json` holds what is shown."""
    began_s = time.monotonic()
    if max_steps is not None and max_steps < 1:
        raise UsageError(f"--max-steps must be at least 1, not {max_steps}")
    console = console or Console(highlight=False)
    folder = _make_folder(output_dir)
    _calm()
    # A model this small gains nothing from a second thread, and on two busy cores the threads wait for one another.
    torch.set_num_threads(1)
    transformers.set_seed(seed)
    rng = random.Random(seed)

    words = task.make_task(rng, train_words=TRAIN_WORDS, held_out_words=HELD_OUT_WORDS)
    tokenizer = task.make_tokenizer()
    model = task.make_model(tokenizer)
    _introduce(console, sum(weights.numel() for weights in model.parameters()))
    _warm_up(console, model, tokenizer, words.train, rng)
    before = task.answer_greedily(model, tokenizer, words.held_out)
    console.print(f"held-out accuracy of the weak policy: [bold]{task.accuracy(words.held_out, before):.0%}[/]\n")

    config = _write_inputs(folder, words, model, tokenizer, constant_reward)
    console.print("GRPO, with rewards from a gRPC service in a process of its own")
    overrides = ["--seed", str(seed), *(["--max_steps", str(max_steps)] if max_steps else [])]
    trainer = train(["--config", str(config), *overrides], callbacks=[ProgressReport(console, "GRPO   ")], quiet=True)
    after = task.answer_greedily(trainer.model, tokenizer, words.held_out)

    outcome = Outcome(words.held_out, before, after)
    seconds = time.monotonic() - began_s
    _summarise(folder, outcome, seconds, seed=seed, steps=trainer.state.global_step, constant_reward=constant_reward)
    _conclude(console, outcome, folder, seconds)
    return folder


# ---------------------------------------------------------------------------------------------------------------- steps


def _make_folder(output_dir: str | None) -> Path:
    folder = Path(output_dir or f"runs/quickstart-{time.strftime('%Y%m%d-%H%M%S')}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"--output-dir {folder} exists and is not empty; name another folder, or remove it")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _calm() -> None:
    """Keeps remarks of the libraries, which are meant for bigger models, off the screen."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("trl").setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(trl|transformers)\.")


def _warm_up(console: Console, model: Any, tokenizer: Any, words: Sequence[str], rng: random.Random) -> None:
    with make_progress(console) as progress:
        bar = progress.add_task("warm-up", total=WARM_UP_STEPS, note="")

        def on_step(loss: float) -> None:
            progress.update(bar, advance=1, note=f"loss {loss:.2f}")

        task.warm_up(model, tokenizer, words, rng, steps=WARM_UP_STEPS, on_step=on_step)


def _write_inputs(folder: Path, words: task.Task, model: Any, tokenizer: Any, constant_reward: bool) -> Path:
    """The weak model, the data and both configs, so that the run can be looked at and run again; returns train.yaml."""
    weak, data, reward = folder / "weak-model", folder / "train.jsonl", folder / "reward.yaml"
    model.save_pretrained(weak)
    tokenizer.save_pretrained(weak)
    _write_rows(data, words.train)
    _write_rows(folder / "held_out.jsonl", words.held_out)
    reward.write_text(_shipped("constant_reward.yaml" if constant_reward else "reward.yaml"))
    paths = {
        "model_name_or_path": str(weak.resolve()),
        "dataset_name": str(data.resolve()),
        "reward_config": str(reward.resolve()),
        "output_dir": str(folder.resolve()),
    }
    config = folder / "train.yaml"
    config.write_text(f"{_shipped('train.yaml')}\n# This run's.\n{yaml.safe_dump(paths)}")
    return config


def _shipped(name: str) -> str:
    return resources.files("grpo_plugin.cli.quickstart").joinpath(name).read_text(encoding="utf-8")


def _write_rows(path: Path, words: Sequence[str]) -> None:
    rows = ({"prompt": task.prompt_of(word), "answer": task.answer_of(word)} for word in words)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _summarise(folder: Path, outcome: Outcome, seconds: float, **more: Any) -> None:
    before, after = outcome.accuracies
    samples = [
        {"prompt": task.prompt_of(word), "before": old, "after": new, "answer": task.answer_of(word)}
        for word, old, new in list(zip(outcome.words, outcome.before, outcome.after, strict=True))[:SAMPLES]
    ]
    summary = {
        "accuracy_before": before,
        "accuracy_after": after,
        "seconds": round(seconds, 1),
        **more,
        "held_out": len(outcome.words),
        "samples": samples,
    }
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")


# ------------------------------------------------------------------------------------------------------------ the story


def _introduce(console: Console, weights: int) -> None:
    console.print("[bold]Task[/]     sort the letters of a word:  dbca= → abcd")
    console.print(f"[bold]Model[/]    a Llama of {weights / 1000:.0f} thousand weights, made just now")
    console.print("[bold]Warm-up[/]  on a careless teacher, who sorts four letters and mostly just copies the rest\n")


def _conclude(console: Console, outcome: Outcome, folder: Path, seconds: float) -> None:
    before, after = outcome.accuracies
    table = Table(title="Held-out words, greedy decoding", title_justify="left", title_style="bold")
    for header in ("prompt", "before GRPO", "after GRPO"):
        table.add_column(header)
    for word, old, new in list(zip(outcome.words, outcome.before, outcome.after, strict=True))[:SAMPLES]:
        table.add_row(task.prompt_of(word), _marked(old, word), _marked(new, word))
    console.print()
    console.print(table)
    console.print(
        f"held-out accuracy   [bold]{before:.0%} → {after:.0%}[/]   "
        f"({len(outcome.words)} words, none of them trained on; {format_duration(seconds)} in all)\n",
        soft_wrap=True,
    )
    console.print(f"run folder: {folder}", soft_wrap=True)
    console.print("next:", style="dim")
    for command in (
        f"grpo plot {folder}",
        f"reward-server view {folder}",
        f"grpo train --config {folder}/train.yaml --output_dir {folder}-again --learning_rate 5e-4",
        f"reward-server score --config {folder}/reward.yaml --prompt ba= --completion ab --column 'answer=\"ab\"'",
    ):
        console.print(f"  [cyan]{command}[/]", soft_wrap=True)


def _marked(answer: str, word: str) -> Text:
    right = answer == task.answer_of(word)
    return Text(f"{answer} {'✓' if right else '✗'}", style="green" if right else "red")
