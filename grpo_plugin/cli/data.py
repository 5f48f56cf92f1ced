"""Loads the rows to train and evaluate on: from a dataset's name or a file, by a mapping of columns.

Owns the loading of local files and hub datasets, the column mapping and the wrapping of prompts into messages. Knows
nothing of models, trainers or rewards.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, load_dataset, load_from_disk

from grpo_plugin.errors import UsageError

BUILDERS = {".json": "json", ".jsonl": "json", ".parquet": "parquet", ".csv": "csv"}


@dataclass
class DataArguments:
    """What to train on. The names are those of `trl.ScriptArguments` where it has them."""

    dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "A dataset of the hub, a JSON, JSONL, Parquet or CSV file, or a folder that save_to_disk wrote."
        },
    )
    dataset_config: str | None = field(
        default=None, metadata={"help": "Configuration of the hub dataset, where it has several (GSM8K's is main)."}
    )
    dataset_train_split: str = field(default="train", metadata={"help": "Split to train on."})
    dataset_test_split: str = field(
        default="test", metadata={"help": "Split to evaluate on, where eval_strategy asks for evaluation."}
    )
    eval_dataset_name: str | None = field(
        default=None, metadata={"help": "Another dataset or file to evaluate on, in place of dataset_test_split."}
    )
    eval_size: float | None = field(
        default=None,
        metadata={
            "help": "Part of the training split to hold out and evaluate on: a fraction below 1, or a number of rows."
        },
    )
    max_train_rows: int | None = field(
        default=None, metadata={"help": "Train on no more rows than this, from the first on."}
    )
    max_eval_rows: int | None = field(
        default=None, metadata={"help": "Evaluate on no more rows than this, from the first on."}
    )
    columns: dict | str | None = field(
        default=None,
        metadata={
            "help": "New names of columns, as new: old, in YAML or as JSON. `prompt` must be among the new names; "
            "reward functions and scorers get the other columns. Columns that are not named are dropped. Unset keeps "
            "all columns as they are."
        },
    )
    system_prompt: str | None = field(
        default=None,
        metadata={"help": "A system message to put before each prompt, which makes the prompts conversational."},
    )
    conversational: bool = field(
        default=False,
        metadata={
            "help": "Wrap each text prompt into a user message, so that the model's chat template is applied; for "
            "models that are trained to chat. Prompts that are messages already need no wrapping."
        },
    )

    def __post_init__(self) -> None:
        self.columns = _parse_columns(self.columns)
        if self.eval_size is not None and self.eval_size <= 0:
            raise UsageError(f"eval_size must be a fraction below 1 or a number of rows, not {self.eval_size:g}")


def load_splits(args: DataArguments, *, seed: int, evaluates: bool) -> tuple[Dataset, Dataset | None]:
    """The rows to train on and, if `evaluates`, those to evaluate on. Raises UsageError that names what is wrong."""
    if args.dataset_name is None:
        raise UsageError("dataset_name is missing: set it to a dataset of the hub or a JSON, JSONL or Parquet file")
    train = _load(args.dataset_name, args.dataset_config, args.dataset_train_split, "dataset_name")
    held_out = None
    if evaluates and args.eval_dataset_name is not None:
        held_out = _load(args.eval_dataset_name, args.dataset_config, args.dataset_test_split, "eval_dataset_name")
    elif evaluates and args.eval_size is not None:
        train, held_out = _hold_out(train, args.eval_size, seed)
    elif evaluates and _builder_of(args.dataset_name):
        raise UsageError(
            f"{args.dataset_name} is one file, which has nothing to evaluate on: set eval_size to hold part of it out, "
            "eval_dataset_name to another file, or eval_strategy to 'no'"
        )
    elif evaluates:
        held_out = _load(args.dataset_name, args.dataset_config, args.dataset_test_split, "dataset_name")
    return (
        _prepare(train, args, args.max_train_rows),
        None if held_out is None else _prepare(held_out, args, args.max_eval_rows),
    )


def check_path(name: str, option: str) -> None:
    """Raises UsageError if a name that can only be a path has nothing there. Loads nothing."""
    path = Path(name).expanduser()
    if (_builder_of(name) or name.startswith((".", "/", "~"))) and not path.exists():
        raise UsageError(f"{option}: there is no {name} (working folder: {Path.cwd()})")


# ------------------------------------------------------------------------------------------------------------- loading


def _builder_of(name: str) -> str | None:
    return BUILDERS.get(Path(name).suffix.lower())


def _load(name: str, config: str | None, split: str, option: str) -> Dataset:
    check_path(name, option)
    path = Path(name).expanduser()
    try:
        if path.is_dir() and not any(path.glob("*.py")):
            rows = _load_folder(path, split)
        elif builder := _builder_of(name):
            rows = _load_file(path, builder)
        else:
            rows = load_dataset(name, config, split=split)
    except UsageError:
        raise
    except Exception as error:  # datasets raises what its readers raise: ArrowInvalid, ConnectionError, ValueError, …
        raise UsageError(f"{option} {name!r} (split {split!r}) cannot be loaded: {_reason(error)}") from error
    if not len(rows):
        raise UsageError(f"{option} {name!r} (split {split!r}) has no rows; give one with at least one prompt")
    return rows


def _load_file(path: Path, builder: str) -> Dataset:
    if path.stat().st_size == 0:
        raise UsageError(f"{path} is empty; give a file with at least one row")
    return load_dataset(builder, data_files=str(path), split="train")


def _load_folder(path: Path, split: str) -> Dataset:
    if not ((path / "state.json").exists() or (path / "dataset_dict.json").exists()):
        return load_dataset(str(path), split=split)
    rows = load_from_disk(str(path))
    if isinstance(rows, DatasetDict):
        if split not in rows:
            raise UsageError(f"{path} has no split {split!r}, only {', '.join(map(repr, rows))}")
        return rows[split]
    return rows


def _reason(error: Exception) -> str:
    """The innermost cause, which says what the readers' wrappers hide; one line."""
    while error.__cause__ is not None and isinstance(error.__cause__, Exception):
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _hold_out(rows: Dataset, size: float, seed: int) -> tuple[Dataset, Dataset]:
    count = int(size) if size >= 1 else round(size * len(rows))
    if not 0 < count < len(rows):
        raise UsageError(f"eval_size ({size:g}) must leave rows on both sides of the split; there are {len(rows)} rows")
    split = rows.train_test_split(test_size=count, seed=seed)
    return split["train"], split["test"]


# ------------------------------------------------------------------------------------------------------------- columns


def _parse_columns(value: Any) -> dict[str, str] | None:
    try:
        mapping = json.loads(value) if isinstance(value, str) else value
    except ValueError as error:
        raise UsageError(f"columns must be a mapping such as {{prompt: question}}, not {value!r}") from error
    if mapping is None:
        return None
    pairs = mapping.items() if isinstance(mapping, Mapping) else ()
    if not pairs or not all(isinstance(new, str) and isinstance(old, str) for new, old in pairs):
        raise UsageError(f"columns must be a mapping such as {{prompt: question}}, not {value!r}")
    if "prompt" not in mapping:
        raise UsageError(f"columns must say which column is the prompt; it has only {', '.join(mapping)}")
    return dict(mapping)


def _prepare(rows: Dataset, args: DataArguments, most: int | None) -> Dataset:
    rows = _rename(rows, args.columns if isinstance(args.columns, dict) else None)
    if most is not None:
        rows = rows.select(range(min(most, len(rows))))
    if args.system_prompt is None and not args.conversational:
        return rows
    return rows.map(lambda row: {"prompt": as_messages(row["prompt"], args.system_prompt)})


def _rename(rows: Dataset, columns: Mapping[str, str] | None) -> Dataset:
    there = rows.column_names
    if columns is None:
        if "prompt" not in there:
            raise UsageError(
                f"the data has no column 'prompt'; it has {', '.join(map(repr, there))}. Say which one is the prompt "
                f"with columns: {{prompt: {there[0]}}}"
            )
        return rows
    missing = [old for old in columns.values() if old not in there]
    if missing:
        raise UsageError(
            f"columns names {', '.join(map(repr, missing))}, and the data has {', '.join(map(repr, there))}"
        )
    twice = {old for old in columns.values() if list(columns.values()).count(old) > 1}
    if twice:
        raise UsageError(f"columns uses {', '.join(map(repr, sorted(twice)))} twice; give each column one new name")
    return rows.select_columns(list(columns.values())).rename_columns({old: new for new, old in columns.items()})


def as_messages(prompt: Any, system_prompt: str | None) -> list[dict[str, Any]]:
    """A prompt as messages: text becomes the user's; the system prompt goes first where there is none yet."""
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    if system_prompt is None or (messages and messages[0]["role"] == "system"):
        return messages
    return [{"role": "system", "content": system_prompt}, *messages]
