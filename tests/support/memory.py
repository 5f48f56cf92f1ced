"""A meter of memory where there is no device to measure: what a forward keeps for its backward."""

from __future__ import annotations

from typing import Any

import torch


class SavedTensors:
    """Counts the bytes of the storages that autograd saves between `begin` and `end`, each once."""

    def __init__(self, room_bytes: int):
        self.room_bytes = room_bytes
        self.begun_steps = 0
        self._found: dict[int, int] = {}
        self._kept: list[torch.Tensor] = []  # so that no storage is freed and another takes its place
        self._hooks: Any = None

    def begin_step(self) -> int:
        self.begun_steps += 1
        return self.room_bytes

    def begin(self) -> None:
        self._found, self._kept = {}, []
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._save, lambda saved: saved)
        self._hooks.__enter__()

    def end(self) -> int:
        self._hooks.__exit__(None, None, None)
        self._kept = []
        return sum(self._found.values())

    def _save(self, value: torch.Tensor) -> torch.Tensor:
        storage = value.untyped_storage()
        self._found[storage.data_ptr()] = storage.nbytes()
        self._kept.append(value.detach())
        return value
