"""The rows of all ranks by the numbers that plans are made of.

Owns the one gathered table from which every rank makes the same plan. Knows nothing of plans or of how rows move.

Legend: N rows on this rank, R rows over all ranks.
"""

from __future__ import annotations

import zlib
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
    most_tokens: int = 0  # what every rank's memory has room for in a micro-batch; 0 where a rank does not know

    @classmethod
    def of(cls, fields: Fields | None, rows: int, ranks: Ranks, most_tokens: int = 0) -> Table | None:
        """From each rank's `rows` rows, read from the device in one copy.

        None, alike on all ranks, where one of them holds what cannot be rearranged (`fields` is None), an empty prompt,
        or other fields or types than another.
        """
        own = torch.zeros((rows, len(_COLUMNS)), dtype=torch.int64) if fields is None else _columns(fields, most_tokens)
        gathered = ranks.gather(own.to(ranks.device)).cpu().numpy().T
        prompt, completion, number, loss, advantage, width, kinds, tokens = gathered
        if not prompt.all() or (kinds != kinds[0]).any():
            return None
        rank = np.repeat(np.arange(ranks.count), rows)
        found = Rows(prompt, completion, number, rank)
        return cls(found, loss, advantage, int(width.max()), int(tokens.min()))

    def members(self, prune: bool) -> list[int]:
        """The rows that can have a gradient: those with tokens in the loss and, if `prune`, an advantage."""
        alive_R = (self.loss_tokens_R > 0) & ((self.has_advantage_R > 0) | (not prune))
        return [int(row) for row in np.flatnonzero(alive_R)]


_COLUMNS = ("prompt", "completion", "number", "loss", "advantage", "width", "kinds", "most_tokens")


def _columns(fields: Fields, most_tokens: int) -> torch.Tensor:
    """A row of `_COLUMNS` for each row here, where the fields are."""
    ids, advantages = fields["prompt_ids"], fields.get("advantages")
    kinds = " ".join(sorted(f"{name} {value.dtype}" for name, value in fields.items()))
    of_all = (ids.shape[1] + fields["completion_ids"].shape[1], zlib.crc32(kinds.encode()), most_tokens)
    columns = [
        fields["prompt_mask"].sum(1),
        fields["completion_mask"].sum(1),
        prompt_numbers(ids, fields["prompt_mask"]),
        tokens_N(fields),
        torch.ones_like(ids[:, 0]) if advantages is None else advantages != 0,
        *(torch.full_like(ids[:, 0], value, dtype=torch.int64) for value in of_all),
    ]
    return torch.stack([column.to(torch.int64) for column in columns], dim=1)


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
