"""The few tokens that a model is tried with: random rows, and the same rows with the tokens of others changed.

Owns how such rows are made. Knows nothing of models.

Legend: N rows, C the width of the completions, W that of a whole row.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch

# Among the first ids: a model that takes images too has their ids among the last.
_MOST_IDS = 1000


class Lengths(NamedTuple):
    """A row: rows with one `prompt` number have the same prompt."""

    prompt: int
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class TrialRows:
    """Token ids and attention mask, shape (N, W); prompts are padded on the left, completions on the right."""

    ids: torch.Tensor
    mask: torch.Tensor
    width: int  # C
    lengths: tuple[Lengths, ...]
    _pool: torch.Tensor  # ids in random order, of which rows take one after another

    @classmethod
    def make(cls, lengths: Sequence[Lengths], vocabulary: int, never: Collection[int], device: Any) -> TrialRows:
        """Rows whose tokens all differ, as far as the vocabulary goes. Leaves the global random generator alone."""
        order = torch.randperm(min(vocabulary, _MOST_IDS), generator=torch.Generator().manual_seed(0))
        pool = torch.tensor([token for token in order.tolist() if token not in never])
        prompts, width = max(row.prompt_tokens for row in lengths), max(row.completion_tokens for row in lengths)
        column, shape = torch.arange(prompts + width)[None], (len(lengths), prompts + width)
        first = torch.tensor([prompts - row.prompt_tokens for row in lengths])[:, None]
        end = torch.tensor([prompts + row.completion_tokens for row in lengths])[:, None]
        places = torch.arange(shape[0] * shape[1]).view(shape)
        families = [next(i for i, other in enumerate(lengths) if other.prompt == row.prompt) for row in lengths]
        places[:, :prompts] = places[families, :prompts]
        mask = ((column >= first) & (column < end)).long()
        return cls(pool[places % len(pool)].to(device), mask.to(device), width, tuple(lengths), pool.to(device))

    @property
    def prompts(self) -> int:
        """The width of the prompts."""
        return self.ids.shape[1] - self.width

    @property
    def valid(self) -> torch.Tensor:
        """Which places of (N, C) hold a completion's token."""
        return self.mask[:, self.prompts :].bool()

    def kept(self, rows: Collection[int]) -> torch.Tensor:
        """Which places of (N, W) hold a token of these rows: their completions, and the prompts of them."""
        prompts = {self.lengths[row].prompt for row in rows}
        kept = self.mask.bool().clone()
        for number, row in enumerate(self.lengths):
            kept[number, : self.prompts] &= row.prompt in prompts
            kept[number, self.prompts :] &= number in rows
        return kept

    def only_outside(self, rows: Collection[int]) -> torch.Tensor:
        """The ids that only other places hold. There may be none: rows of a small vocabulary share ids."""
        kept = self.kept(rows)
        others = self.ids[~kept].unique()
        return others[~torch.isin(others, self.ids[kept])]

    def changed(self, rows: Collection[int]) -> TrialRows:
        """The rows with every token changed that is not of these, padding included."""
        place = torch.zeros(int(self._pool.max()) + 1, dtype=torch.int64, device=self.ids.device)
        place[self._pool] = torch.arange(len(self._pool), device=self.ids.device)
        other = self._pool[(place[self.ids] + len(self._pool) // 2) % len(self._pool)]
        return replace(self, ids=torch.where(self.kept(rows), self.ids, other))

    def alone(self, row: int) -> TrialRows:
        """One row, without the padding on its left; it keeps that on its right."""
        start = self.prompts - self.lengths[row].prompt_tokens
        rows, lengths = slice(row, row + 1), (self.lengths[row],)
        return replace(self, ids=self.ids[rows, start:], mask=self.mask[rows, start:], lengths=lengths)
