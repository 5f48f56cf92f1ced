"""Which rows go through the model together, on which rank: pure functions of lengths.

Owns what a forward costs, the spreading of rows over ranks so that all finish together, and micro-batches under a
budget of tokens. Knows nothing of tensors, of losses or of how ranks talk: every rank holds the same `Rows` and so
makes the same plan.

    plan = make_plan(rows, members, ranks, budget_tokens, layout)
    plan[rank][number]      the rows of one micro-batch; as many on each rank, of which the last may be empty

A layout is how rows lie in a forward. `PaddedLayout`: each row is as wide as the longest prompt and completion among
them. `PackedLayout`: one row after another, without padding; where it `shares`, the rows of one prompt compute that
prompt once.

What a token costs is taken as 1 for the linear layers, plus attention, which grows with the tokens that it looks at.

Legend: R rows, in the order of the ranks that hold them.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
MicroBatch = tuple[int, ...]
Plan = tuple[tuple[MicroBatch, ...], ...]

# Rows stay where they are unless moving them makes the slowest rank faster by more than this.
_WORTH_MOVING = 0.03

# What one more sequence that shares a prompt costs beside its tokens (its keys are gathered behind the prompt's), in
# tokens: a prompt that saves less is computed each time.
_SHARING_TOKENS = 8


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
        width = self._width(rows, batch) if len(batch) else 0
        return len(batch) * (width + self.attention * width**2)

    def units(self, rows: Rows, members: Sequence[int], size: int) -> list[MicroBatch]:
        return [(row,) for row in members]

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

    def units(self, rows: Rows, members: Sequence[int], size: int) -> list[MicroBatch]:
        """What is not to be torn apart: `size` rows of one prompt at most."""
        if not self.shares or size <= 1:
            return [(row,) for row in members]
        units = []
        for family in _by_prompt(rows, members):
            longest_first = sorted(family, key=lambda row: -rows.completion_tokens_R[row])
            parts = balanced([float(rows.completion_tokens_R[row]) for row in longest_first], -(-len(family) // size))
            units += [tuple(longest_first[index] for index in part) for part in parts]
        return units

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


def worth_sharing(prompt_tokens: int, rows: int) -> bool:
    """Whether a prompt of `rows` completions is cheaper to compute once."""
    return rows > 1 and (rows - 1) * (prompt_tokens - 1) > rows * _SHARING_TOKENS


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
    parts = _spread(rows, members, ranks, budget_tokens, layout)
    batches = [_micro_batches(rows, part, budget_tokens, layout, at_least=1) for part in parts]
    count = max(len(own) for own in batches)
    batches = [
        own if len(own) == count else _micro_batches(rows, part, budget_tokens, layout, at_least=count)
        for own, part in zip(batches, parts, strict=True)
    ]
    count = max(1, *(len(own) for own in batches))
    return tuple(
        tuple(sorted(own, key=lambda batch: -layout.cost(rows, batch))) + ((),) * (count - len(own)) for own in batches
    )


def balanced(costs: Sequence[float], parts: int) -> list[list[int]]:
    """Splits numbers into `parts` of about equal sums, longest first (Graham 1969): the indices of each part."""
    heap = [(0.0, part) for part in range(parts)]
    found: list[list[int]] = [[] for _ in range(parts)]
    for index in sorted(range(len(costs)), key=lambda index: -costs[index]):
        load, part = heapq.heappop(heap)
        found[part].append(index)
        heapq.heappush(heap, (load + costs[index], part))
    return found


# ------------------------------------------------------------------------------------------------------- over the ranks


def _spread(rows: Rows, members: Sequence[int], ranks: int, budget: int, layout: Layout) -> list[list[MicroBatch]]:
    """Each rank's units. At home, unless moving rows makes the slowest rank clearly faster."""
    sizes = _unit_sizes(rows, members, layout)
    home = [[row for row in members if rows.rank_R[row] == rank] for rank in range(ranks)]
    best = [_fitting(rows, layout.units(rows, own, max(sizes)), budget, layout) for own in home]
    least = _slowest(rows, best, layout)
    if ranks == 1:
        return best
    least *= 1 - _WORTH_MOVING
    for size in sizes:
        units = _fitting(rows, layout.units(rows, members, size), budget, layout)
        parts = balanced([layout.cost(rows, unit) for unit in units], ranks)
        spread = _at_home(rows, [[units[index] for index in part] for part in parts])
        slowest = _slowest(rows, spread, layout)
        if slowest < least:
            best, least = spread, slowest
    return best


def _unit_sizes(rows: Rows, members: Sequence[int], layout: Layout) -> list[int]:
    """How many rows of a prompt may stay together: whole families, halves, quarters, …, single rows."""
    largest = max((len(family) for family in _by_prompt(rows, members)), default=1)
    sizes = [largest] if isinstance(layout, PackedLayout) and layout.shares else [1]
    while sizes[-1] > 1:
        sizes.append(sizes[-1] // 2)
    return sizes


def _fitting(rows: Rows, units: list[MicroBatch], budget: int, layout: Layout) -> list[MicroBatch]:
    """The units, those beyond the budget halved until they fit."""
    fitting, todo = [], list(units)
    while todo:
        unit = todo.pop()
        if len(unit) == 1 or layout.tokens(rows, unit) <= budget:
            fitting.append(unit)
        else:
            todo += [unit[::2], unit[1::2]]
    return fitting


def _slowest(rows: Rows, parts: Sequence[Sequence[MicroBatch]], layout: Layout) -> float:
    return max(sum(layout.cost(rows, unit) for unit in part) for part in parts)


def _at_home(rows: Rows, parts: list[list[MicroBatch]]) -> list[list[MicroBatch]]:
    """The same parts, given to ranks so that many tokens stay where they are: the heaviest claim first."""
    claims = []
    for number, part in enumerate(parts):
        held = np.zeros(len(parts), dtype=np.int64)
        for unit in part:
            index = np.asarray(unit)
            np.add.at(held, rows.rank_R[index], rows.tokens_R[index])
        claims += [(-int(tokens), number, rank) for rank, tokens in enumerate(held)]
    given: dict[int, int] = {}
    for _, number, rank in sorted(claims):
        if number not in given.values() and rank not in given:
            given[rank] = number
    return [parts[given[rank]] for rank in range(len(parts))]


# ---------------------------------------------------------------------------------------------------- in micro-batches


def _micro_batches(
    rows: Rows, units: Sequence[MicroBatch], budget: int, layout: Layout, at_least: int
) -> list[MicroBatch]:
    """One rank's micro-batches, `at_least` so many where there are units for it."""
    if not units:
        return []
    if isinstance(layout, PaddedLayout):
        return _split(rows, _rectangles(rows, [unit[0] for unit in units], budget, layout), at_least, layout)
    total = sum(layout.tokens(rows, unit) for unit in units)
    count = max(at_least, -(-total // budget))
    while True:
        parts = balanced([layout.cost(rows, unit) for unit in units], min(count, len(units)))
        batches = [tuple(row for index in part for row in units[index]) for part in parts]
        if count >= len(units) or all(layout.tokens(rows, batch) <= budget for batch in batches):
            return batches
        count += 1


def _rectangles(rows: Rows, members: Sequence[int], budget: int, layout: PaddedLayout) -> list[MicroBatch]:
    """Cuts the rows, sorted by length, where the padded whole costs least."""
    order = np.asarray(sorted(members, key=lambda row: (-rows.tokens_R[row], row)))
    prompts, completions = rows.prompt_tokens_R[order], rows.completion_tokens_R[order]
    best = np.full(len(order) + 1, np.inf)
    best[0], cut = 0.0, np.zeros(len(order) + 1, dtype=np.int64)
    for end in range(1, len(order) + 1):
        counts = np.arange(1, end + 1)  # rows of the last rectangle, which begins at end - count
        width = _running_max(prompts[:end]) + _running_max(completions[:end])
        cost = counts * (width + layout.attention * width**2) + layout.overhead_tokens
        cost = np.where((counts * width <= budget) | (counts == 1), cost + best[end - counts], np.inf)
        choice = int(cost.argmin())
        best[end], cut[end] = cost[choice], end - counts[choice]
    found, end = [], len(order)
    while end:
        found.append(tuple(int(row) for row in order[cut[end] : end]))
        end = int(cut[end])
    return found[::-1]


def _running_max(values: Ints) -> Ints:
    """The largest of the last 1, 2, 3, … values."""
    return np.asarray(np.maximum.accumulate(values[::-1]))


def _split(rows: Rows, batches: list[MicroBatch], count: int, layout: PaddedLayout) -> list[MicroBatch]:
    """The dearest micro-batches halved until there are `count`, or nothing is left to halve."""
    while len(batches) < count and any(len(batch) > 1 for batch in batches):
        dearest = max((batch for batch in batches if len(batch) > 1), key=lambda batch: layout.cost(rows, batch))
        batches.remove(dearest)
        middle = len(dearest) // 2
        batches += [dearest[:middle], dearest[middle:]]
    return batches


def _by_prompt(rows: Rows, members: Iterable[int]) -> list[MicroBatch]:
    families: dict[int, list[int]] = {}
    for row in members:
        families.setdefault(int(rows.prompt_R[row]), []).append(row)
    return [tuple(family) for family in families.values()]
