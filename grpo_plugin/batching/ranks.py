"""How the ranks of a run talk to one another.

Owns the collective calls, so that what uses them can be tested without processes. Knows nothing of rows or plans.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed

AllToAll = Callable[[torch.Tensor, Sequence[int], Sequence[int]], torch.Tensor]


def all_to_all(sent: torch.Tensor, sent_sizes: Sequence[int], received_sizes: Sequence[int]) -> torch.Tensor:
    """Sends to rank n the next `sent_sizes[n]` values of a vector; returns what arrived, in the order of the ranks.

    Every rank makes this call, also one that sends and receives nothing. It waits as long as the process group's
    timeout says.
    """
    received = sent.new_empty(sum(received_sizes))
    torch.distributed.all_to_all_single(received, sent, list(received_sizes), list(sent_sizes))
    return received


@dataclass(frozen=True, slots=True)
class Ranks:
    """Which rank this is, and how ranks talk: `gather` joins tensors of equal shape along their first dimension."""

    rank: int
    count: int
    gather: Callable[[torch.Tensor], torch.Tensor]
    device: torch.device | str = "cpu"
    all_to_all: AllToAll = all_to_all

    def all(self, fact: bool) -> bool:
        """Whether it is so on every rank: one may hold images where another's rows have none."""
        return fact if self.count == 1 else bool(self.gather(torch.tensor([fact], device=self.device)).all())
