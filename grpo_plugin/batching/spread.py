"""Decides which rank computes which row, so that all ranks finish together and few rows move.

Owns the search, which starts from where the rows are. Knows nothing of tokens or layouts: costs come as whole numbers,
whose sums are the same on every processor, so that every rank decides the same.

The rows of a unit lie on one rank and share a fixed cost (a prompt that is computed once for its completions):

    cost of a unit = its fixed cost + the sum of its rows' weights

A part of a unit that moves pays the fixed cost again where it arrives. The search takes the slowest rank, moves rows
away from it, and ends when that rank is within `TOLERANCE` of the best possible, or when no step helps.

Legend: M rows that are computed, U units, C possible moves.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from grpo_plugin.batching.micro_batches import balanced

Ints = npt.NDArray[np.int64]

# The slowest rank may take this much longer than the best possible: less is lost than by moving more rows.
TOLERANCE = 0.02

# A step that does not bring a rank within the tolerance must gain this part of the best possible, or the search ends.
_LEAST_GAIN = 0.0025

# An exchange of two units is looked for between the slowest rank and so many of the fastest ones.
_PARTNERS = 8


@dataclass(frozen=True, slots=True)
class Work:
    """The rows to compute. Rows with the same number in `unit_M` lie on one rank and have the same fixed cost."""

    weight_M: Ints
    fixed_M: Ints
    unit_M: Ints
    rank_M: Ints  # where the rows are


@dataclass(frozen=True, slots=True)
class _Moves:
    """What can leave a rank: for each unit, its heaviest 1, 2, … rows (all of them at last) and its lightest ones."""

    rows: Ints  # of the rank, by unit, heaviest first
    start_C: Ints  # the moved rows are rows[start:end]
    end_C: Ints
    gain_C: Ints  # what the rank saves
    price_C: Ints  # what the other rank pays

    def moved(self, choice: int) -> Ints:
        return self.rows[self.start_C[choice] : self.end_C[choice]]


@dataclass(frozen=True, slots=True)
class Spread:
    """The rank that computes each row, the cost of the slowest rank, and whether that is within the tolerance."""

    rank_M: Ints
    slowest: int
    even: bool

    def or_if_clearly_faster(self, other: Spread) -> Spread:
        return other if other.slowest < self.slowest * (1 - TOLERANCE) else self


def spread(work: Work, ranks: int) -> Spread:
    """Where rows are computed: where they are, unless moving some of them is clearly faster.

    Where few rows are on each rank, steps one at a time may end far from the best. The search then starts again from
    all units dealt out anew.
    """
    search = _Search(work, ranks)
    best = search.state()
    search.run()
    best = best.or_if_clearly_faster(search.state())
    if not search.state().even:
        again = _Search(replace(work, rank_M=dealt(work, ranks)), ranks)
        again.run()
        best = best.or_if_clearly_faster(again.state())
    return best


def dealt(work: Work, ranks: int) -> Ints:
    """All units in parts of about equal cost, each part on a rank that holds much of it."""
    _, first, unit_M = np.unique(work.unit_M, return_index=True, return_inverse=True)
    cost_U = sums(unit_M, work.weight_M, len(first)) + work.fixed_M[first]
    part_U = np.zeros(len(first), dtype=np.int64)
    for part, units in enumerate(balanced(cost_U.tolist(), ranks)):
        part_U[units] = part
    held = sums(part_U * ranks + work.rank_M[first], cost_U, ranks * ranks).reshape(ranks, ranks)
    rank_of_part = np.zeros(ranks, dtype=np.int64)
    for _ in range(ranks):  # the heaviest claim first
        part, rank = divmod(int(held.argmax()), ranks)
        rank_of_part[part] = rank
        held[part, :], held[:, rank] = -1, -1
    return rank_of_part[part_U[unit_M]]


class _Search:
    """The state of one search: where each row is, in which unit, and the load of each rank."""

    def __init__(self, work: Work, ranks: int):
        self.weight_M, self.fixed_M = work.weight_M, work.fixed_M
        self.unit_M, self.rank_M = work.unit_M.copy(), work.rank_M.copy()
        self.next_unit = int(work.unit_M.max(initial=-1)) + 1
        self.load = sums(work.rank_M, work.weight_M, ranks)
        _, first = np.unique(work.unit_M, return_index=True)
        self.load += sums(work.rank_M[first], work.fixed_M[first], ranks)
        largest_row = int((work.weight_M + work.fixed_M).max(initial=0))
        best = max(-(-int(self.load.sum()) // ranks), largest_row)
        self.limit, self.least_gain = int(best * (1 + TOLERANCE)), int(best * _LEAST_GAIN) + 1

    def state(self) -> Spread:
        slowest = int(self.load.max())
        return Spread(self.rank_M.copy(), slowest, slowest <= self.limit)

    def run(self) -> None:
        for _ in range(4 * len(self.rank_M)):
            slow = int(self.load.argmax())
            if self.load[slow] <= self.limit or not (self._move(slow) or self._swap(slow)):
                return

    def _move(self, slow: int) -> bool:
        """Moves what is best to move from this rank to the fastest one; False if nothing is."""
        fast = int(self.load.argmin())
        moves = self._moves_from(slow)
        choice = self._best(moves, int(self.load[slow]), int(self.load[fast]))
        if choice is None:
            return False
        self._put(moves.moved(choice), fast, int(moves.gain_C[choice]), int(moves.price_C[choice]))
        return True

    def _moves_from(self, rank: int) -> _Moves:
        rows = np.flatnonzero(self.rank_M == rank)
        rows = rows[np.lexsort((-self.weight_M[rows], self.unit_M[rows]))]
        unit, weight, fixed = self.unit_M[rows], self.weight_M[rows], self.fixed_M[rows]
        place = np.arange(len(rows))
        first = np.flatnonzero(np.diff(unit, prepend=-1))
        size = np.diff(first, append=len(rows))
        start, end = np.repeat(first, size), np.repeat(first + size, size)
        running = np.cumsum(weight)
        heaviest = running - (running - weight)[start]
        lightest = running[end - 1] - running  # of the rows behind this one
        some = place + 1 < end
        return _Moves(
            rows,
            np.concatenate([start, place[some] + 1]),
            np.concatenate([place + 1, end[some]]),
            np.concatenate([heaviest + np.where(some, 0, fixed), lightest[some]]),
            np.concatenate([heaviest + fixed, (lightest + fixed)[some]]),
        )

    def _best(self, moves: _Moves, slow_load: int, fast_load: int) -> int | None:
        """The move to make: one that brings the rank within the limit, at the least extra cost and of the fewest rows;
        else the largest that the other rank has room for; else the one that helps most."""
        slow_C, fast_C = slow_load - moves.gain_C, fast_load + moves.price_C
        extra_C = moves.price_C - moves.gain_C
        fits = fast_C <= self.limit
        done = np.flatnonzero(fits & (slow_C <= self.limit))
        if len(done):
            order = np.lexsort((moves.price_C[done], (moves.end_C - moves.start_C)[done], extra_C[done]))
            return int(done[order[0]])
        net_C = np.where(fits, moves.gain_C - extra_C, 0)
        if net_C.max(initial=0) >= self.least_gain:
            return int(net_C.argmax())
        after_C = np.maximum(slow_C, fast_C)
        return int(after_C.argmin()) if slow_load - after_C.min(initial=slow_load) >= self.least_gain else None

    def _swap(self, slow: int) -> bool:
        """Exchanges a unit of this rank for a smaller one of a fast rank; False if that does not help."""
        fast = np.argsort(self.load, kind="stable")[:_PARTNERS]
        rank_U, unit_U, cost_U = self._units_of(np.append(fast[fast != slow], slow))
        own, other = np.flatnonzero(rank_U == slow), np.flatnonzero(rank_U != slow)
        if not len(own) or not len(other):
            return False
        less = cost_U[own][:, None] - cost_U[other][None, :]
        after = np.maximum(self.load[slow] - less, self.load[rank_U[other]][None, :] + less)
        best = int(after.argmin())
        if self.load[slow] - after.flat[best] < self.least_gain:
            return False
        here, there = own[best // len(other)], other[best % len(other)]
        for unit, target in ((here, int(rank_U[there])), (there, slow)):
            self._put(np.flatnonzero(self.unit_M == unit_U[unit]), target, int(cost_U[unit]), int(cost_U[unit]))
        return True

    def _units_of(self, ranks: Ints) -> tuple[Ints, Ints, Ints]:
        """The rank, number and cost of each unit of these ranks."""
        rows = np.flatnonzero(np.isin(self.rank_M, ranks))
        unit_U, first, unit = np.unique(self.unit_M[rows], return_index=True, return_inverse=True)
        first = rows[first]
        cost_U = sums(unit, self.weight_M[rows], len(unit_U)) + self.fixed_M[first]
        return self.rank_M[first], unit_U, cost_U

    def _put(self, rows: Ints, rank: int, gain: int, price: int) -> None:
        """Moves these rows of one unit, which become a unit of their own."""
        self.load[self.rank_M[rows[0]]] -= gain
        self.load[rank] += price
        self.rank_M[rows] = rank
        self.unit_M[rows] = self.next_unit
        self.next_unit += 1


def sums(index: Ints, values: Ints, count: int) -> Ints:
    """The sum of the values at each index below `count`. Exact: whole numbers below 2^53 are, in any order."""
    return np.bincount(index, weights=values, minlength=count).astype(np.int64)
