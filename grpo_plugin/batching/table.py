"""The rows of all ranks by the numbers that plans are made of.

Owns the one gathered table from which every rank makes the same plan. Knows nothing of plans or of how rows move.

Legend: N rows on this rank, R rows over all ranks.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch

from grpo_plugin.batching.exchange import Fields
from grpo_plugin.batching.plan import Ints, Rows
from grpo_plugin.batching.ranks import Ranks
from grpo_plugin.rewards.survivors import tokens_N


@dataclass(frozen=True, slots=True)
class Table:
    """The R rows of all ranks by the numbers that plans are made of; the same on every rank."""

    rows: Rows
    loss_tokens_R: Ints
    has_advantage_R: Ints
    width: int  # of the widest tensors as TRL padded them

    @classmethod
    def of(cls, fields: Fields, ranks: Ranks) -> Table:
        width = fields["prompt_ids"].shape[1] + fields["completion_ids"].shape[1]
        advantages = fields.get("advantages")
        columns = [
            fields["prompt_mask"].sum(1),
            fields["completion_mask"].sum(1),
            prompt_numbers(fields["prompt_ids"], fields["prompt_mask"]),
            tokens_N(fields),
            torch.ones(len(fields["prompt_ids"])) if advantages is None else advantages != 0,
            torch.full((len(fields["prompt_ids"]),), width),
        ]
        device = fields["prompt_ids"].device
        table = torch.stack([column.to(device=device, dtype=torch.int64) for column in columns], dim=1)
        prompt, completion, number, loss, advantage, widths = ranks.gather(table).cpu().numpy().T
        rank = np.repeat(np.arange(ranks.count), len(fields["prompt_ids"]))
        return cls(Rows(prompt, completion, number, rank), loss, advantage, int(widths.max()))

    def members(self, prune: bool) -> list[int]:
        """The rows that can have a gradient: those with tokens in the loss and, if `prune`, an advantage."""
        alive_R = (self.loss_tokens_R > 0) & ((self.has_advantage_R > 0) | (not prune))
        return [int(row) for row in np.flatnonzero(alive_R)]


def prompt_numbers(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """A number for each prompt, equal where the prompts are, on all ranks: 63 bits of a hash."""
    ids, keep = ids.cpu(), mask.cpu().bool()
    digests = [hashlib.blake2b(row[kept].numpy().tobytes(), digest_size=8) for row, kept in zip(ids, keep, strict=True)]
    return torch.tensor([int.from_bytes(digest.digest(), "little") >> 1 for digest in digests])
