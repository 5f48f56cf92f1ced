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
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from grpo_plugin.batching.micro_batches import bins, halved, rectangles
from grpo_plugin.batching.sharing import PARTS_OF_A_TOKEN, TYPICAL, Gains, KeyCost
from grpo_plugin.batching.spread import TOLERANCE, Spread, Work, spread, sums
from grpo_plugin.batching.units import Members

Ints = npt.NDArray[np.int64]
MicroBatch = tuple[int, ...]
Plan = tuple[tuple[MicroBatch, ...], ...]
Costed = list[list[tuple[int, MicroBatch]]]  # for each rank, its micro-batches and what they cost

# How often padded rows are spread again with what padding added.
_PADDING_ROUNDS = 2


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
        """What `rows` rows of this width cost."""
        return rows * (width + self.attention * width**2)

    def _width(self, rows: Rows, batch: Sequence[int]) -> int:
        index = np.asarray(batch)
        return int(rows.prompt_tokens_R[index].max() + rows.completion_tokens_R[index].max())


@dataclass(frozen=True, slots=True)
class PackedLayout:
    """Rows one after another, without padding. With `shares`, a prompt is computed once where an estimate says so."""

    attention: float
    shares: bool
    keys: KeyCost = TYPICAL

    def tokens(self, rows: Rows, batch: Sequence[int]) -> int:
        """Tokens that a forward of these rows computes."""
        return int(sum(self._tokens(rows, family) for family in self.families(rows, batch)))

    def cost(self, rows: Rows, batch: Sequence[int]) -> float:
        return float(sum(self._cost(rows, family) for family in self.families(rows, batch)))

    def families(self, rows: Rows, batch: Sequence[int]) -> list[MicroBatch]:
        """The rows of each prompt that is computed once; a row alone where sharing gains nothing."""
        index = np.asarray(batch, dtype=np.int64)
        if not self.shares or not len(index):
            return [(int(row),) for row in batch]
        number = np.unique(rows.prompt_R[index], return_inverse=True)[1]
        gains = Gains.of(rows.prompt_tokens_R[index], rows.completion_tokens_R[index], self.attention, self.keys)
        alone = len(index) + np.arange(len(index))
        number = np.where(gains.joins_M, number, alone)
        number = np.where(gains.worth(number), number, alone)
        families: dict[int, list[int]] = {}
        for row, family in zip(index.tolist(), number.tolist(), strict=True):
            families.setdefault(family, []).append(row)
        return [tuple(family) for family in families.values()]

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
    computed = _members(rows, members, layout)
    rank_M = _spread(computed, ranks, budget_tokens)
    if isinstance(layout, PaddedLayout):
        costed = _evened(computed, rank_M, ranks, budget_tokens, layout)
    else:
        costed = _bins(computed, rank_M, ranks, budget_tokens)
    count = max(1, *(len(own) for own in costed))
    return tuple(
        tuple(batch for _, batch in sorted(own, key=lambda pair: -pair[0])) + ((),) * (count - len(own))
        for own in costed
    )


def _members(rows: Rows, members: Sequence[int], layout: Layout) -> Members:
    row_M = np.asarray(members, dtype=np.int64)
    columns = (rows.prompt_R, rows.rank_R, rows.prompt_tokens_R, rows.completion_tokens_R)
    prompt, rank, prompt_tokens, completion_tokens = (column[row_M] for column in columns)
    keys = layout.keys if isinstance(layout, PackedLayout) and layout.shares else None
    return Members.of(row_M, prompt, rank, prompt_tokens, completion_tokens, layout.attention, keys)


# ------------------------------------------------------------------------------------------------------- over the ranks


def _spread(rows: Members, ranks: int, budget: int) -> Ints:
    """The rank that computes each row: few move, and the rows of a prompt come together where that is faster."""
    if ranks == 1 or not len(rows.row_M):
        return rows.rank_M

    def found(rank_M: Ints, most_rows: int | None = None) -> Spread:
        units = rows.units(rank_M, budget, most_rows)
        return spread(Work(rows.weight_M, rows.prefix_cost_M, units, rank_M), ranks)

    best, united = found(rows.rank_M), rows.united()
    if (united != rows.rank_M).any():
        best = best.or_if_clearly_faster(found(united))
    if not best.even:
        for most_rows in rows.fewer_rows():
            best = best.or_if_clearly_faster(found(united, most_rows))
    return best.rank_M


def _evened(rows: Members, rank_M: Ints, ranks: int, budget: int, layout: PaddedLayout) -> Costed:
    """Padded micro-batches on ranks that finish together.

    What padding adds is known only when rows are cut into rectangles, and differs between ranks. So rows are spread
    again, each taken to cost as much more than alone as the rows of its rank did.
    """
    costed = best = _rectangles(rows, rank_M, ranks, budget, layout)
    for _ in range(_PADDING_ROUNDS):
        load = [sum(cost for cost, _ in own) for own in costed]
        if max(load) * ranks <= sum(load) * (1 + TOLERANCE):
            break
        alone = sums(rank_M, rows.weight_M + rows.prefix_cost_M, ranks)
        padding_M = (np.array(load) / np.maximum(1, alone))[rank_M]
        weight_M, fixed_M = (np.rint(cost * padding_M).astype(np.int64) for cost in (rows.weight_M, rows.prefix_cost_M))
        rank_M = spread(Work(weight_M, fixed_M, np.arange(len(rank_M)), rank_M), ranks).rank_M
        costed = _rectangles(rows, rank_M, ranks, budget, layout)
        best = min(best, costed, key=lambda found: _slowest(found, layout))
    return best


def _slowest(costed: Costed, layout: PaddedLayout) -> int:
    own = layout.overhead_tokens * PARTS_OF_A_TOKEN
    return max(sum(cost + own for cost, _ in batches) for batches in costed)


# ---------------------------------------------------------------------------------------------------- in micro-batches


def _bins(rows: Members, rank_M: Ints, ranks: int, budget: int) -> Costed:
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


def _rectangles(rows: Members, rank_M: Ints, ranks: int, budget: int, layout: PaddedLayout) -> Costed:
    """Each rank's rows in rectangles; as many on every rank, if it has rows for them."""
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

    def cost(rank: int, start: int, end: int) -> int:
        width = int(prompts[rank, start:end].max() + completions[rank, start:end].max())
        return round(layout.rectangle(end - start, width) * PARTS_OF_A_TOKEN)

    return [
        [(cost(rank, start, end), tuple(members[rank][start:end])) for start, end in own]
        for rank, own in enumerate(parts)
    ]


def _grouped(values: Ints, group: Ints, groups: int) -> list[list[int]]:
    """The values of each group, in their order."""
    ends = np.cumsum(np.bincount(group, minlength=groups)).tolist()
    in_order = values[np.argsort(group, kind="stable")].tolist()
    return [in_order[start:end] for start, end in itertools.pairwise([0, *ends])]
