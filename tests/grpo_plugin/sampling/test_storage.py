"""The history of prompts in a checkpoint, on ranks that see different disks."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from accelerate import PartialState

from grpo_plugin.batching.ranks import Ranks
from grpo_plugin.sampling import storage
from tests.support.ranks import on_gloo


def read_history(ranks: Ranks) -> Any:
    """What a rank reads, where only rank 0 has written."""
    names = {"RANK": ranks.rank, "LOCAL_RANK": ranks.rank, "WORLD_SIZE": ranks.count, "LOCAL_WORLD_SIZE": ranks.count}
    os.environ.update({name: str(value) for name, value in names.items()})
    PartialState._reset_state()  # read_history is called as a launcher would call it, and imports may come before
    PartialState(cpu=True)
    with tempfile.TemporaryDirectory() as folder:
        if ranks.rank == 0:
            storage.write(Path(folder), storage.DIFFICULTY, {"epochs": 2})
        return storage.read_on_main(Path(folder), storage.DIFFICULTY)


@pytest.mark.slow
def test_ranks_of_other_machines_get_the_history_of_the_main_process(tmp_path: Path) -> None:
    assert on_gloo(2, tmp_path, read_history) == [{"epochs": 2}] * 2


def test_a_checkpoint_without_a_history_has_none(tmp_path: Path) -> None:
    assert storage.read_on_main(tmp_path, storage.DIFFICULTY) is None
