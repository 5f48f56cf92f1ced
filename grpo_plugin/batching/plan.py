"""Which rows go through the model together, on which rank: pure functions of lengths.

Owns what a forward costs and the plan: which rank computes a row (`spread`), and in which micro-batch
(`micro_batches`). Knows nothing of tensors, of losses or of how ranks talk: every rank holds the same `Rows` and so
makes the same plan.

    plan = make_plan(rows, members, ranks, budget_tokens, layout)
    plan[rank][number]      the rows of one micro-batch; as many on each rank, of which the last may be empty

A layout is how rows lie in a forward. `PaddedLayout`: each row is as wide as the longest prompt and completion among
them. `PackedLayout`: one row after another, without padding; where it `shares`, the rows of one prompt compute that
prompt once.

What a token costs is taken as 1 for the linear layers, plus attention, which grows with the tokens that it looks at.

Legend: R rows, in the order of the ranks that hold them; M rows that are computed; U units of rows that stay together.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from grpo_plugin.batching.micro_batches import bins, halved, rectangles
from grpo_plugin.batching.spread import TOLERANCE, Work, spread, sums

Ints = npt.NDArray[np.int64]
MicroBatch = tuple[int, ...]
Plan = tuple[tuple[MicroBatch, ...], ...]

# What one more sequence that shares a prompt costs beside its tokens (its keys are gathered behind the prompt's), in
# tokens: a prompt that saves less is computed each time.
_SHARING_TOKENS = 8

# Costs are counted in whole numbers of this part of a token, so that their sums are exact and alike on every processor.
_PARTS_OF_A_TOKEN = 256


@dataclass(frozen=True, slots=True)
class Rows:
    """What a plan is made of: each row's tokens, who holds it, and a number that is equal where prompts are."""

    prompt_tokens_R: Ints
    completion_tokens_R: Ints
    prompt_R: Ints
    rank_R: Ints

    @property
    def tokens_R(self) -> Ints:
        return self.prompt_tokens_R + self.completion_tokens_R


@dataclass(frozen=True, slots=True)
class PaddedLayout:
    """Rows as a rectangle. `overhead_tokens` is what a micro-batch costs beside its tokens."""

    attention: float
    overhead_tokens: int = 0

    def tokens(self, rows: Rows, batch: Sequence[int]) -> int:
        """Tokens that a forward of these rows computes, padding included."""
        return len(batch) * self._width(rows, batch) if len(batch) else 0

    def cost(self, rows: Rows, batch: Sequence[int]) -> float:
        return self.rectangle(len(batch), self._width(rows, batch) if len(batch) else 0)

    def rectangle(self, rows: int, width: int) -> float:
        return float(rows * (width + self.attention * width**2))

    def _width(self, rows: Rows, batch: Sequence[int]) -> int:
        index = np.asarray(batch)
        return int(rows.prompt_tokens_R[index].max() + rows.completion_tokens_R[index].max())


@dataclass(frozen=True, slots=True)
class PackedLayout:
    """Rows one after another, without padding. With `shares`, a prompt is computed once for its rows."""

    attention: float
    shares: bool

    def tokens(self, rows: Rows, batch: Sequence[int]) -> int:
        """Tokens that a forward of these rows computes."""
        return int(sum(self._tokens(rows, family) for family in self.families(rows, batch)))

    def cost(self, rows: Rows, batch: Sequence[int]) -> float:
        return float(sum(self._cost(rows, family) for family in self.families(rows, batch)))

    def families(self, rows: Rows, batch: Sequence[int]) -> list[MicroBatch]:
        """The rows of each prompt that is computed once; a row alone where sharing gains nothing."""
        if not self.shares:
            return [(row,) for row in batch]
        found: list[MicroBatch] = []
        for family in _by_prompt(rows, batch):
            shared = worth_sharing(int(rows.prompt_tokens_R[family[0]]), len(family))
            found += [family] if shared else [(row,) for row in family]
        return found

    def _tokens(self, rows: Rows, family: MicroBatch) -> int:
        index = np.asarray(family)
        prompt, completions = int(rows.prompt_tokens_R[index[0]]), int(rows.completion_tokens_R[index].sum())
        # The prompt's last token begins each completion, since it is what the first token is sampled from.
        return prompt + completions if len(family) == 1 else prompt - 1 + completions + len(family)

    def _cost(self, rows: Rows, family: MicroBatch) -> float:
        index = np.asarray(family)
        prompt = int(rows.prompt_tokens_R[index[0]])
        if len(family) == 1:
            tokens = prompt + int(rows.completion_tokens_R[index[0]])
            return tokens + self.attention * tokens**2
        own_R, prefix = rows.completion_tokens_R[index] + 1, prompt - 1
        looked_at = prefix**2 + int((own_R**2 + 2 * prefix * own_R).sum())
        return prefix + int(own_R.sum()) + self.attention * looked_at


Layout = PaddedLayout | PackedLayout


def _by_prompt(rows: Rows, batch: Iterable[int]) -> list[MicroBatch]:
    families: dict[int, list[int]] = {}
    for row in batch:
        families.setdefault(int(rows.prompt_R[row]), []).append(row)
    return [tuple(family) for family in families.values()]


def worth_sharing(prompt_tokens: int, rows: int) -> bool:
    """Whether a prompt of `rows` completions is cheaper to compute once."""
    return bool(_worth_sharing(np.int64(prompt_tokens), np.int64(rows)))


def _worth_sharing(prompt_tokens: Any, rows: Any) -> Any:
    return (rows - 1) * (prompt_tokens - 1) > rows * _SHARING_TOKENS


def attention_cost(hidden: int, intermediate: int) -> float:
    """What attention costs in t tokens, over t², if a token's linear layers cost 1.

    A layer of hidden size h and a gated MLP of size i has 4h² + 3hi weights, 2 operations each a token; causal
    attention does 4h operations for each of t²/2 pairs (as in Kaplan et al. 2020, section 2.1).
    """
    return 1.0 / (4 * hidden + 3 * intermediate)


def make_plan(rows: Rows, members: Sequence[int], ranks: int, budget_tokens: int, layout: Layout) -> Plan:
    """Micro-batches for each rank: of the rows `members`, all of them once, and as many micro-batches on every rank.

    No micro-batch computes more than `budget_tokens`, but for a row that does so alone. They are in order of cost,
    the dearest first, so that those which ranks compute at the same time take about as long.
    """
    computed = _Members.of(rows, members, layout)
    rank_M = _spread(computed, ranks, budget_tokens)
    cut = _rectangles if isinstance(layout, PaddedLayout) else _bins
    costed = cut(computed, rank_M, ranks, budget_tokens, layout)
    count = max(1, *(len(own) for own in costed))
    return tuple(
        tuple(batch for _, batch in sorted(own, key=lambda pair: -pair[0])) + ((),) * (count - len(own))
        for own in costed
    )


# ------------------------------------------------------------------------------------------------------------- the rows


@dataclass(frozen=True, slots=True)
class _Members:
    """The rows to compute. A row costs its weight, and once for its unit what the unit's prompt costs."""

    row_M: Ints
    prompt_M: Ints
    rank_M: Ints
    prefix_tokens_M: Ints  # the prompt but its last token, which begins the completion
    own_tokens_M: Ints  # the prompt's last token and the completion
    prefix_cost_M: Ints
    weight_M: Ints
    shares: bool

    @classmethod
    def of(cls, rows: Rows, members: Sequence[int], layout: Layout) -> _Members:
        row_M = np.asarray(members, dtype=np.int64)
        prefix, own = rows.prompt_tokens_R[row_M] - 1, rows.completion_tokens_R[row_M] + 1
        return cls(
            row_M,
            rows.prompt_R[row_M],
            rows.rank_R[row_M],
            prefix,
            own,
            _whole(prefix + layout.attention * prefix**2),
            _whole(own + layout.attention * (own**2 + 2 * prefix * own)),
            isinstance(layout, PackedLayout) and layout.shares,
        )

    def units(self, rank_M: Ints, budget: int) -> Ints:
        """A number for each row, equal for the rows that compute their prompt once, within the budget.

        These are rows of one prompt on one rank. Where they are too many for the budget they are dealt, longest first,
        to as few units as fit; where sharing gains nothing each is alone.
        """
        if not self.shares or not len(self.row_M):
            return np.arange(len(self.row_M))
        order = np.lexsort((-self.own_tokens_M, self.prompt_M, rank_M))
        new = np.diff(self.prompt_M[order], prepend=-1).astype(bool) | np.diff(rank_M[order], prepend=-1).astype(bool)
        first = np.flatnonzero(new)
        size = np.diff(first, append=len(order))
        family, place = np.cumsum(new) - 1, np.arange(len(order)) - np.repeat(first, size)
        prompt = self.prefix_tokens_M[order][first] + 1
        parts = _parts(self.own_tokens_M[order], family, place, size, budget - prompt + 1)
        parts = np.where(_worth_sharing(prompt, np.maximum(2, size // parts)), parts, size)
        unit_M = np.empty_like(order)
        unit_M[order] = first[family] + place % parts[family]
        return unit_M


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
    return np.rint(cost * _PARTS_OF_A_TOKEN).astype(np.int64)


# ------------------------------------------------------------------------------------------------------- over the ranks


def _spread(rows: _Members, ranks: int, budget: int) -> Ints:
    """The rank that computes each row: few move, and the rows of a prompt come together where that is faster."""
    if ranks == 1 or not len(rows.row_M):
        return rows.rank_M

    def found(rank_M: Ints) -> tuple[Ints, int]:
        return spread(Work(rows.weight_M, rows.prefix_cost_M, rows.units(rank_M, budget), rank_M), ranks)

    best, slowest = found(rows.rank_M)
    united = _united(rows)
    if (united != rows.rank_M).any():
        together, slowest_together = found(united)
        if slowest_together < slowest * (1 - TOLERANCE):
            return together
    return best


def _united(rows: _Members) -> Ints:
    """Each row on the rank that holds most of its prompt's tokens, where computing the prompt once gains something."""
    if not rows.shares:
        return rows.rank_M
    _, prompt, count = np.unique(rows.prompt_M, return_inverse=True, return_counts=True)
    held = np.unique(np.stack([prompt, rows.rank_M]), axis=1, return_inverse=True)
    (prompt_H, rank_H), holding = held[0], held[1].reshape(-1)
    tokens_H = sums(holding, rows.own_tokens_M, len(prompt_H))
    order = np.lexsort((rank_H, -tokens_H, prompt_H))
    first = np.flatnonzero(np.diff(prompt_H[order], prepend=-1))
    main = rank_H[order][first]
    gains = _worth_sharing(rows.prefix_tokens_M + 1, count[prompt])
    return np.where(gains, main[prompt], rows.rank_M)


# ---------------------------------------------------------------------------------------------------- in micro-batches

Costed = list[list[tuple[float, MicroBatch]]]  # for each rank, its micro-batches and their costs


def _bins(rows: _Members, rank_M: Ints, ranks: int, budget: int, layout: Layout) -> Costed:
    """Each rank's units in bins of about equal cost; as many on every rank, if it has units for them."""
    _, first, unit_M = np.unique(rows.units(rank_M, budget), return_index=True, return_inverse=True)
    cost_U = sums(unit_M, rows.weight_M, len(first)) + rows.prefix_cost_M[first]
    tokens_U = sums(unit_M, rows.own_tokens_M, len(first)) + rows.prefix_tokens_M[first]
    members = _grouped(rows.row_M, unit_M, len(first))
    units = _grouped(np.arange(len(first)), rank_M[first], ranks)
    costs, tokens = ([values[own].tolist() for own in units] for values in (cost_U, tokens_U))
    parts = [bins(*pair, budget) for pair in zip(costs, tokens, strict=True)]
    count = max(len(own) for own in parts)
    parts = [
        own if len(own) == count else bins(costs[rank], tokens[rank], budget, count) for rank, own in enumerate(parts)
    ]
    return [
        [
            (sum(costs[rank][index] for index in part), tuple(row for index in part for row in members[own[index]]))
            for part in parts[rank]
        ]
        for rank, own in enumerate(units)
    ]


def _rectangles(rows: _Members, rank_M: Ints, ranks: int, budget: int, layout: Layout) -> Costed:
    """Each rank's rows in rectangles; as many on every rank, if it has rows for them."""
    assert isinstance(layout, PaddedLayout)
    order = np.lexsort((rows.row_M, -(rows.prefix_tokens_M + rows.own_tokens_M), rank_M))
    rank, count_K = rank_M[order], np.bincount(rank_M, minlength=ranks)
    place = np.arange(len(order)) - (np.cumsum(count_K) - count_K)[rank]
    prompts, completions = np.zeros((2, ranks, int(count_K.max())), dtype=np.int64)
    prompts[rank, place], completions[rank, place] = rows.prefix_tokens_M[order] + 1, rows.own_tokens_M[order] - 1
    parts = rectangles(prompts, completions, count_K, budget, layout.attention, layout.overhead_tokens)
    count = max(len(own) for own in parts)
    alone = _grouped((rows.weight_M + rows.prefix_cost_M)[order], rank, ranks)
    parts = [own if len(own) == count else halved(own, count, alone[rank]) for rank, own in enumerate(parts)]
    members = _grouped(rows.row_M[order], rank, ranks)

    def cost(rank: int, start: int, end: int) -> float:
        return layout.rectangle(end - start, prompts[rank, start:end].max() + completions[rank, start:end].max())

    return [
        [(cost(rank, start, end), tuple(members[rank][start:end])) for start, end in own]
        for rank, own in enumerate(parts)
    ]


def _grouped(values: Ints, group: Ints, groups: int) -> list[list[int]]:
    """The values of each group, in their order."""
    ends = np.cumsum(np.bincount(group, minlength=groups)).tolist()
    in_order = values[np.argsort(group, kind="stable")].tolist()
    return [in_order[start:end] for start, end in itertools.pairwise([0, *ends])]
