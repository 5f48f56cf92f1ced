"""The history of prompts in a checkpoint: its file, which the main process writes and reads for all ranks.

Knows nothing of what the history holds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

FILE_NAME = "difficulty.json"


def write(checkpoint: Path, state: Mapping[str, Any]) -> None:
    """Writes the file into a checkpoint's folder, which is there."""
    (checkpoint / FILE_NAME).write_text(json.dumps(state) + "\n")


def read_on_main(checkpoint: Path) -> dict[str, Any] | None:
    """What the main process has in its file, on all ranks: other machines may not see that file. None without one."""
    path = checkpoint / FILE_NAME
    found = [json.loads(path.read_text()) if PartialState().is_main_process and path.exists() else None]
    broadcast_object_list(found)
    return found[0]
