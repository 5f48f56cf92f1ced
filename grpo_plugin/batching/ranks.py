"""How the ranks of a run talk to one another.

Owns the collective calls, so that what uses them can be tested without processes. Knows nothing of rows or plans.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Ranks:
    """Which rank this is, and how ranks talk: `gather` joins tensors of equal shape along their first dimension."""

    rank: int
    count: int
    gather: Callable[[torch.Tensor], torch.Tensor]
    device: torch.device | str = "cpu"

    def all(self, fact: bool) -> bool:
        """Whether it is so on every rank: one may hold images where another's rows have none."""
        return fact if self.count == 1 else bool(self.gather(torch.tensor([fact], device=self.device)).all())
