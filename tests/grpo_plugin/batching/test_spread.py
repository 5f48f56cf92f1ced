"""Units of whole numbers, spread over ranks from where they are."""

from __future__ import annotations

import numpy as np
import pytest

from grpo_plugin.batching.spread import Ints, Work, spread


def work(weights: list[int], ranks: int, fixed: int = 0) -> Work:
    """Units of one row each, as many on every rank."""
    count = len(weights)
    return Work(np.array(weights), np.full(count, fixed), np.arange(count), np.repeat(np.arange(ranks), count // ranks))


def loads(made: Work, rank_M: Ints, ranks: int) -> list[int]:
    """The cost of each rank, counted row by row: the fixed cost once for each unit that has rows there."""
    found = [0] * ranks
    seen = set()
    for weight, fixed, unit, rank in zip(made.weight_M, made.fixed_M, made.unit_M, rank_M, strict=True):
        found[rank] += int(weight) + (0 if (unit, rank) in seen else int(fixed))
        seen.add((unit, rank))
    return found


def test_one_unit_moves_where_one_is_enough() -> None:
    # 50 | 40 | 30: one of the rows of 10 goes from the first to the last.
    found = spread(work([20, 10, 10, 10, 10, 10, 10, 10, 27, 1, 1, 1], ranks=3), 3)
    assert found.rank_M.tolist() == [0, 2, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]


def test_units_are_exchanged_where_no_move_helps() -> None:
    # 30 + 20 | 22 + 8: a move of 20 or 30 would only change sides, an exchange of 30 for 22 makes it 42 | 38.
    found = spread(work([30, 20, 22, 8], ranks=2), 2)
    assert sorted(loads(work([30, 20, 22, 8], ranks=2), found.rank_M, 2)) == [38, 42]


def test_all_units_are_dealt_out_anew_where_single_steps_end_too_early() -> None:
    # From 25 | 57 the 12 moves: 37 | 45, which no single step betters. 23 + 14 + 4 | 22 + 12 + 7 is even.
    found = spread(work([7, 14, 4, 23, 22, 12], ranks=2), 2)
    assert (found.slowest, found.even) == (41, True)


def test_nothing_moves_for_a_gain_within_the_tolerance() -> None:
    made = work([51, 50, 49, 50], ranks=2)
    assert spread(made, 2).rank_M.tolist() == [0, 0, 1, 1]


def test_a_part_of_a_unit_pays_the_fixed_cost_again() -> None:
    # 8 rows of 100 and a prompt of 10 on the first rank: 4 of them elsewhere make it 410 | 410.
    made = Work(np.full(8, 100), np.full(8, 10), np.zeros(8, np.int64), np.zeros(8, np.int64))
    found = spread(made, 2)
    assert (np.bincount(found.rank_M).tolist(), found.slowest) == ([4, 4], 410)


def test_a_part_stays_where_the_fixed_cost_is_larger_than_the_gain() -> None:
    made = Work(np.full(4, 1), np.full(4, 1000), np.zeros(4, np.int64), np.zeros(4, np.int64))
    assert spread(made, 2).rank_M.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("rows_a_unit", [1, 4])
def test_the_slowest_rank_is_what_its_rows_cost_and_never_slower_than_before(rows_a_unit: int) -> None:
    for seed in range(60):
        draw = np.random.default_rng(seed)
        ranks, units = int(draw.integers(2, 8)), int(draw.integers(1, 30))
        unit_M = np.repeat(np.arange(units), rows_a_unit)
        rank_M, fixed_M = (draw.integers(0, most, units)[unit_M] for most in (ranks, 300))
        made = Work(draw.integers(1, 200, len(unit_M)), fixed_M, unit_M, rank_M)
        found = spread(made, ranks)
        slowest = max(loads(made, found.rank_M, ranks))
        assert slowest <= found.slowest <= max(loads(made, rank_M, ranks)), seed
        if rows_a_unit == 1:
            assert slowest == found.slowest, seed
