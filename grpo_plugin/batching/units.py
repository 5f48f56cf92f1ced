"""Which of the rows to compute stand together as a unit, since they compute their prompt once, and what they cost.

Owns the costs of rows as whole numbers and the units within a budget of tokens. Knows nothing of layouts but whether
prompts are shared, and nothing of how rows are spread.

Legend: M rows to compute; H pairs of a prompt and a rank that holds rows of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from grpo_plugin.batching.sharing import PARTS_OF_A_TOKEN, Gains, KeyCost
from grpo_plugin.batching.spread import sums

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Members:
    """The rows to compute. A row costs its weight, and once for its unit what the unit's prompt costs."""

    row_M: Ints
    prompt_M: Ints  # equal for the rows of a prompt that may share it
    rank_M: Ints
    prefix_tokens_M: Ints  # the prompt but its last token, which begins the completion
    own_tokens_M: Ints  # the prompt's last token and the completion
    prefix_cost_M: Ints
    weight_M: Ints
    gains: Gains | None  # None: no row shares

    @classmethod
    def of(
        cls,
        row_M: Ints,
        prompt_M: Ints,
        rank_M: Ints,
        prompt_tokens_M: Ints,
        completion_tokens_M: Ints,
        attention: float,
        keys: KeyCost | None,
    ) -> Members:
        """`keys` is what sharing a prompt costs; None: no row shares."""
        prefix, own = prompt_tokens_M - 1, completion_tokens_M + 1
        prefix_cost = _whole(prefix + attention * prefix**2)
        weight = _whole(own + attention * (own**2 + 2 * prefix * own))
        gains = None if keys is None else Gains.of(prompt_tokens_M, completion_tokens_M, attention, keys)
        if gains is not None:
            numbers = np.unique(prompt_M, return_inverse=True)[1]
            prompt_M = np.where(gains.joins_M, numbers, len(row_M) + np.arange(len(row_M)))
        return cls(row_M, prompt_M, rank_M, prefix, own, prefix_cost, weight, gains)

    def units(self, rank_M: Ints, budget: int, most_rows: int | None = None) -> Ints:
        """A number for each row, equal for the rows that compute their prompt once, within the budget.

        These are rows of one prompt on one rank. Where they are too many for the budget, or more than `most_rows`, they
        are dealt, longest first, to as few units as fit; where sharing gains nothing each is alone.
        """
        if self.gains is None or not len(self.row_M):
            return np.arange(len(self.row_M))
        order = np.lexsort((-self.own_tokens_M, self.prompt_M, rank_M))
        new = np.diff(self.prompt_M[order], prepend=-1).astype(bool) | np.diff(rank_M[order], prepend=-1).astype(bool)
        first = np.flatnonzero(new)
        size = np.diff(first, append=len(order))
        family, place = np.cumsum(new) - 1, np.arange(len(order)) - np.repeat(first, size)
        prompt = self.prefix_tokens_M[order][first] + 1
        parts = _parts(self.own_tokens_M[order], family, place, size, budget - prompt + 1)
        parts = np.maximum(parts, -(-size // (most_rows or len(order))))
        unit_M = np.empty_like(order)
        unit_M[order] = first[family] + place % parts[family]
        alone_M = len(order) + np.arange(len(order))
        return np.where(self.gains.worth(unit_M), unit_M, alone_M)

    def fewer_rows(self) -> list[int]:
        """How many rows of a prompt a unit may have so that prompts are cut in 2, 4, …, down to single rows."""
        if self.gains is None:
            return []
        sizes, rows = [], int(np.unique(self.prompt_M, return_counts=True)[1].max())
        while rows > 1:
            rows = -(-rows // 2)
            sizes.append(rows)
        return sizes

    def united(self) -> Ints:
        """A rank for each row: the one that holds most of its prompt's tokens, where it is worth computing once."""
        if self.gains is None:
            return self.rank_M
        prompt = np.unique(self.prompt_M, return_inverse=True)[1]
        held = np.unique(np.stack([prompt, self.rank_M]), axis=1, return_inverse=True)
        (prompt_H, rank_H), holding = held[0], held[1].reshape(-1)
        tokens_H = sums(holding, self.own_tokens_M, len(prompt_H))
        order = np.lexsort((rank_H, -tokens_H, prompt_H))
        first = np.flatnonzero(np.diff(prompt_H[order], prepend=-1))
        main = rank_H[order][first]
        return np.where(self.gains.worth(prompt), main[prompt], self.rank_M)


def _parts(own_tokens: Ints, family: Ints, place: Ints, size: Ints, room: Ints) -> Ints:
    """In how many parts each family's rows fit into its room, dealt in turn: the first part is the largest."""
    total = sums(family, own_tokens, len(size))
    parts = np.where(room > 0, np.minimum(size, -(-total // np.maximum(1, room))), size)
    while True:
        firsts = place % parts[family] == 0
        beyond = (sums(family[firsts], own_tokens[firsts], len(size)) > room) & (parts < size)
        if not beyond.any():
            return np.asarray(parts)
        parts = parts + beyond


def _whole(cost: npt.NDArray[np.float64]) -> Ints:
    return np.rint(cost * PARTS_OF_A_TOKEN).astype(np.int64)
