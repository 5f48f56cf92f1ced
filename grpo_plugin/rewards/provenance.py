"""Records which reward service scored a run, in the run folder and in each checkpoint, and compares when a run resumes.

Owns the file `reward_service.json`. Knows nothing of calls or ranks.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from reward_server.types import ServerInfo

FILE_NAME = "reward_service.json"


def describe(info: ServerInfo, scorer_names: list[str]) -> dict[str, Any]:
    """The record: the digest of the configuration, and kind, version and weight of each scorer in use."""
    return {
        "config_digest": info.config_digest,
        "server_version": info.server_version,
        "scorers": {
            scorer.name: {"kind": scorer.kind, "version": scorer.version, "weight": scorer.weight}
            for scorer in info.scorers
            if scorer.name in scorer_names
        },
    }


def write(description: dict[str, Any], folder: Path) -> None:
    """Writes the description into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE_NAME).write_text(json.dumps(description, indent=2) + "\n")


def read(folder: Path) -> dict[str, Any] | None:
    """The description in a folder; None if there is none."""
    path = folder / FILE_NAME
    return json.loads(path.read_text()) if path.exists() else None


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What changed between two descriptions, a phrase for each change; empty if the digests are equal."""
    if before["config_digest"] == now["config_digest"]:
        return []
    old, new = before["scorers"], now["scorers"]
    found = [f"scorer {name!r} is gone" for name in old if name not in new]
    found += [f"scorer {name!r} is new" for name in new if name not in old]
    found += [
        f"{key} of scorer {name!r} was {old[name][key]} and is {new[name][key]}"
        for name in old
        if name in new
        for key in old[name]
        if old[name][key] != new[name][key]
    ]
    return found or ["options of a scorer"]


def update(description: dict[str, Any], now: dict[str, Any], step: int, changes: str) -> None:
    """Makes a description the new one, in place, and keeps what changed at which global step."""
    history = [*description.get("changes", []), {"step": step, "changes": changes}]
    description.update(now, changes=history)


def begin(description: dict[str, Any], now: dict[str, Any]) -> None:
    """Makes a description that of a new run, in place: as the service is now, without a history."""
    description.clear()
    description.update(now)


def carry_on(description: dict[str, Any], before: dict[str, Any], step: int) -> list[str]:
    """Gives the description of a run that resumes the history of its checkpoint, in place; returns what changed."""
    changes = differences(before, description)
    history = [*before.get("changes", []), *([{"step": step, "changes": "; ".join(changes)}] if changes else [])]
    if history:
        description["changes"] = history
    return changes


class ProvenanceCallback(TrainerCallback):
    """Writes the description at both ends of training and with each checkpoint, on the main process."""

    def __init__(self, description: dict[str, Any]):
        self.description = description

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            write(self.description, Path(args.output_dir))

    on_train_end = on_train_begin  # with allow_reward_change the description may have changed during the run

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            write(self.description, Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}")
