"""The rows of all ranks by the numbers that plans are made of.

Owns the one gathered table from which every rank makes the same plan. Knows nothing of plans or of how rows move.

Legend: N rows on this rank, R rows over all ranks.
"""

from __future__ import annotations

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


def prompt_numbers(ids_NT: torch.Tensor, mask_NT: torch.Tensor) -> torch.Tensor:
    """A number of 63 bits for each prompt, equal where the prompts are, on all ranks; computed where the ids are.

    The sum of a mixed number for each token at its place among the tokens of the prompt, so that padding does not
    count. The mixing is that of splitmix64 (Steele, Lea and Flood 2014), in wrapping 64-bit arithmetic.
    """
    mask = mask_NT.to(torch.int64)
    mixed = ids_NT.to(torch.int64) * _signed(0x9E3779B97F4A7C15) + mask.cumsum(1) * _signed(0xD1342543DE82EF95)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ _shifted(mixed, shift)) * _signed(factor)
    mixed = mixed ^ _shifted(mixed, 31)
    return (mixed * mask).sum(1) & (2**63 - 1)


def _signed(value: int) -> int:
    """The same 64 bits as a signed number."""
    return value - 2**64 if value >= 2**63 else value


def _shifted(value: torch.Tensor, bits: int) -> torch.Tensor:
    """Shifted to the right, zeros coming in."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)
