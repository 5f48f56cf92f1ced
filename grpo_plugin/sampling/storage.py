"""What sampling knows, in a checkpoint: its files, which the main process writes and reads for all ranks.

Knows nothing of what the files hold.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

DIFFICULTY = "difficulty.json"
SAMPLING = "sampling.json"


class HasState(Protocol):
    """What a checkpoint keeps a state of."""

    def state(self) -> Mapping[str, Any]: ...


class SaveState(TrainerCallback):
    """Writes a state with each checkpoint, on the main process."""

    def __init__(self, name: str, kept: HasState):
        self._name = name
        self._kept = kept

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
            folder.mkdir(parents=True, exist_ok=True)
            write(folder, self._name, self._kept.state())


@contextlib.contextmanager
def kept_in_checkpoints(trainer: Trainer, name: str, kept: HasState) -> Iterator[None]:
    """Inside, each checkpoint of the trainer gets a file `name` with the state."""
    saving = SaveState(name, kept)
    trainer.add_callback(saving)
    try:
        yield
    finally:
        trainer.remove_callback(saving)


def write(checkpoint: Path, name: str, state: Mapping[str, Any]) -> None:
    """Writes a file into a checkpoint's folder, which is there."""
    (checkpoint / name).write_text(json.dumps(state) + "\n")


def read_on_main(checkpoint: Path, name: str) -> dict[str, Any] | None:
    """What the main process has in its file, on all ranks: other machines may not see that file. None without one."""
    path = checkpoint / name
    found = [json.loads(path.read_text()) if PartialState().is_main_process and path.exists() else None]
    broadcast_object_list(found)
    return found[0]
