"""Which rows go through the model together, on which rank: by lengths alone."""

from __future__ import annotations

import itertools
import math
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from grpo_plugin.batching.micro_batches import balanced
from grpo_plugin.batching.plan import (
    Layout,
    PackedLayout,
    PaddedLayout,
    Plan,
    Rows,
    attention_cost,
    make_plan,
)

PADDED, PACKED, SHARED = (
    PaddedLayout(attention=0.0),
    PackedLayout(attention=0.0, shares=False),
    PackedLayout(attention=0.0, shares=True),
)
FORMS = [
    PADDED,
    PACKED,
    SHARED,
    PackedLayout(attention=1e-3, shares=True),
    PaddedLayout(attention=1e-3, overhead_tokens=16),
]


def rows(*lengths: tuple[int, int, int], ranks: int = 1) -> Rows:
    """Rows of (prompt's number, prompt tokens, completion tokens), as many on each rank."""
    number, prompt, completion = (np.array(column, dtype=np.int64) for column in zip(*lengths, strict=True))
    return Rows(prompt, completion, number, np.repeat(np.arange(ranks), len(lengths) // ranks))


def plain(*completions: int, prompt: int = 0, ranks: int = 1) -> Rows:
    """Rows of completions only, each of a prompt of its own."""
    return rows(*[(number, prompt, tokens) for number, tokens in enumerate(completions)], ranks=ranks)


def drawn(seed: int, ranks: int) -> Rows:
    """Skewed lengths in groups of 4, laid out over ranks as TRL lays them out, then shuffled within each rank."""
    chance = random.Random(seed)
    table = []
    for group in range(3 * ranks):
        prompt = chance.randint(1, 60)
        table += [(group, prompt, min(300, int(chance.lognormvariate(3.5, 0.9)))) for _ in range(4)]
    size = len(table) // ranks
    shuffled = [row for rank in range(ranks) for row in chance.sample(table[rank * size : (rank + 1) * size], size)]
    return rows(*shuffled, ranks=ranks)


def all_rows(plan: Plan) -> list[int]:
    return sorted(row for own in plan for batch in own for row in batch)


def makespan(found: Rows, plan: Plan, layout: Layout) -> float:
    return max(sum(layout.cost(found, batch) for batch in own if batch) for own in plan)


@pytest.mark.parametrize("layout", FORMS, ids=str)
@pytest.mark.parametrize(("seed", "ranks"), list(itertools.product(range(4), (1, 2, 3, 8))))
def test_every_row_is_computed_once_under_the_budget_in_as_many_micro_batches_on_each_rank(
    layout: Layout, seed: int, ranks: int
) -> None:
    found = drawn(seed, ranks)
    members = [row for row in range(len(found.rank_R)) if row % 3]
    for budget in (50, 400, 3000):
        plan = make_plan(found, members, ranks, budget, layout)
        assert all_rows(plan) == members
        assert len({len(own) for own in plan}) == 1
        for batch in itertools.chain(*plan):
            assert len(batch) <= 1 or layout.tokens(found, batch) <= budget


def anything(seed: int) -> tuple[Rows, list[int], int, int]:
    """Rows, those to compute, ranks and a budget: groups on several ranks, idle ranks, equal rows, long ones."""
    draw = np.random.default_rng(seed)
    ranks, per_rank, group = int(draw.integers(1, 10)), int(draw.integers(1, 13)), int(draw.integers(1, 9))
    count = ranks * per_rank
    group_R = np.arange(count) // group
    prompts = draw.integers(1, draw.choice([3, 40, 400]), count)[group_R]
    sigma = draw.choice([0.0, 0.9, 1.8])
    completions = np.clip(np.exp(draw.normal(3.5, sigma, count)), 0, 3000).astype(np.int64)
    silent = draw.random(count)[group_R] < draw.choice([0.0, 0.5, 0.9])
    rank_R = np.repeat(np.arange(ranks), per_rank)
    found = Rows(prompts, completions, group_R * 7_919 % 4_096, rank_R)
    return found, np.flatnonzero(~silent).tolist(), ranks, int(draw.choice([1, 60, 700, 9_000]))


@pytest.mark.parametrize("layout", FORMS, ids=str)
def test_whatever_the_rows_a_plan_holds_each_once_within_the_budget_and_is_no_slower_than_at_home(
    layout: Layout,
) -> None:
    for seed in range(150):
        found, members, ranks, budget = anything(seed)
        plan = make_plan(found, members, ranks, budget, layout)
        assert all_rows(plan) == members, seed
        assert len(plan) == ranks, seed
        assert len({len(own) for own in plan}) == 1, seed
        for batch in itertools.chain(*plan):
            assert len(batch) <= 1 or layout.tokens(found, batch) <= budget, seed
        if layout == PACKED:
            home = [sum(found.tokens_R[row] for row in members if found.rank_R[row] == rank) for rank in range(ranks)]
            assert makespan(found, plan, layout) <= max(home), seed


def test_every_process_makes_the_same_plan() -> None:
    # Hash seeds, the order of sets and the number of threads differ between processes; plans must not.
    script = (
        "from tests.grpo_plugin.batching.test_plan import *; import hashlib;"
        "plans = [make_plan(*anything(seed), layout) for seed in range(40) for layout in FORMS];"
        "print(hashlib.sha256(repr(plans).encode()).hexdigest())"
    )
    found = [
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": seed, "OMP_NUM_THREADS": threads},
            cwd=Path(__file__).parents[3],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed, threads in (("1", "1"), ("2", "4"))
    ]
    assert found[0] == found[1]


def test_numbers_of_numpy_and_of_python_make_the_same_plan() -> None:
    found, members, ranks, budget = anything(5)
    assert make_plan(found, members, ranks, budget, SHARED) == make_plan(
        found,
        np.array(members),  # type: ignore[arg-type]
        ranks,
        budget,
        SHARED,
    )
    assert all(type(row) is int for own in make_plan(found, members, ranks, budget, SHARED) for b in own for row in b)


def dealt_anew(found: Rows, members: Sequence[int], ranks: int, layout: Layout) -> float:
    """The slowest rank where all rows are dealt out, longest first: whole groups, halves, …, single rows, the best."""
    best = math.inf
    size = len(members)
    while size:
        units = []
        for number in sorted({int(found.prompt_R[row]) for row in members}):
            family = [row for row in members if found.prompt_R[row] == number]
            family.sort(key=lambda row: -found.completion_tokens_R[row])
            parts = -(-len(family) // size)
            units += [family[part::parts] for part in range(parts)]
        costs = [layout.cost(found, unit) for unit in units]
        best = min(best, max(sum(costs[unit] for unit in part) for part in balanced(costs, ranks)))
        size //= 2
    return best


@pytest.mark.parametrize("layout", [PACKED, SHARED, PackedLayout(attention=1e-4, shares=True)], ids=str)
@pytest.mark.parametrize(("ranks", "rows_a_rank"), [(2, 8), (4, 4), (8, 8), (8, 12), (8, 64)])
def test_ranks_finish_as_early_as_if_all_rows_had_been_dealt_out_anew(
    layout: Layout, ranks: int, rows_a_rank: int
) -> None:
    ratios = []
    for seed in range(12 if rows_a_rank < 64 else 2):
        draw = np.random.default_rng(seed)
        count = ranks * rows_a_rank
        completions = np.clip(np.exp(draw.normal(5.5, 0.9, count)), 1, 4096).astype(np.int64)
        group_R = np.arange(count) // 8
        prompts = draw.integers(50, 400, count)[group_R]
        found = Rows(prompts, completions, group_R, np.repeat(np.arange(ranks), rows_a_rank))
        plan = make_plan(found, range(count), ranks, 10**9, layout)
        ratios.append(makespan(found, plan, layout) / dealt_anew(found, range(count), ranks, layout))
    assert max(ratios) < 1.08
    assert sum(ratios) / len(ratios) < 1.021


@pytest.mark.parametrize(("ranks", "most"), [(8, 16), (64, 120)])
def test_few_rows_move_until_the_slowest_rank_is_within_two_percent_of_the_mean(ranks: int, most: int) -> None:
    draw = np.random.default_rng(1)
    completions = np.clip(np.exp(draw.normal(5.3, 0.6, 64 * ranks)), 1, 1024).astype(np.int64)
    found = plain(*completions.tolist(), prompt=40, ranks=ranks)
    plan = make_plan(found, range(64 * ranks), ranks, 10**9, PACKED)
    moved = [row for rank, own in enumerate(plan) for batch in own for row in batch if found.rank_R[row] != rank]
    assert 0 < len(moved) <= most
    assert makespan(found, plan, PACKED) <= 1.021 * found.tokens_R.sum() / ranks


def test_groups_stay_whole_where_that_is_enough() -> None:
    # 4 groups of 4 on the first rank, none on the second: two whole groups move, and no prompt is computed twice.
    found = rows(*[(row // 4, 500, 20) for row in range(16)], *[(9, 500, 20) for _ in range(16)], ranks=2)
    plan = make_plan(found, range(16), 2, 10_000, SHARED)
    for own in plan:
        assert [len({row // 4 for row in batch}) for batch in own] == [2]
        assert len(own[0]) == 8


def test_a_group_that_lies_on_two_ranks_comes_together_where_that_is_faster() -> None:
    # Each rank holds a whole group and half of another; apart, the prompt of 1,000 is computed on both.
    numbers = [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]
    found = rows(*[(number, 1000 if number == 1 else 480, 10) for number in numbers], ranks=2)
    plan = make_plan(found, range(12), 2, 100_000, SHARED)
    assert makespan(found, plan, SHARED) < 1_200
    assert sum({4, 5, 6, 7} <= set(itertools.chain(*own)) for own in plan) == 1


def test_a_plan_without_rows_is_one_empty_micro_batch_on_each_rank() -> None:
    assert make_plan(plain(5, 5, ranks=2), [], 2, 100, PACKED) == (((),), ((),))


def test_padded_rows_are_cut_where_they_cost_least() -> None:
    # 10 10 | 1 1 1 1 costs 24 tokens and 2 × 1; as one rectangle they would cost 60 + 1.
    plan = make_plan(plain(1, 10, 1, 1, 10, 1), range(6), 1, 100, PaddedLayout(attention=0.0, overhead_tokens=1))
    assert plan == (((1, 4), (0, 2, 3, 5)),)


def test_what_a_micro_batch_costs_by_itself_keeps_rectangles_together() -> None:
    # Cut at 10 | 9 they cost 19 + 2 × 5, together 20 + 5.
    plan = make_plan(plain(10, 9), range(2), 1, 100, PaddedLayout(attention=0.0, overhead_tokens=5))
    assert plan == (((0, 1),),)


def test_packed_rows_fill_as_few_micro_batches_as_the_budget_allows_about_equally() -> None:
    plan = make_plan(plain(6, 5, 4, 3), range(4), 1, 9, PACKED)
    assert [sum((6, 5, 4, 3)[row] for row in batch) for batch in plan[0]] == [9, 9]


def test_rows_move_so_that_ranks_finish_together() -> None:
    found = plain(100, 100, 100, 100, 1, 1, 1, 1, ranks=2)
    plan = make_plan(found, range(8), 2, 1000, PACKED)
    assert makespan(found, plan, PACKED) <= 202 * 1.02


def test_rows_stay_where_they_are_if_moving_gains_nothing() -> None:
    found = plain(10, 20, 20, 10, ranks=2)
    plan = make_plan(found, range(4), 2, 1000, PACKED)
    assert [set(itertools.chain(*own)) for own in plan] == [{0, 1}, {2, 3}]


def test_of_the_rows_that_move_as_few_as_possible_do() -> None:
    # 30 | 10 10 10 is even; the 30 lies on the second rank, and stays there.
    found = plain(10, 10, 30, 10, ranks=2)
    plan = make_plan(found, range(4), 2, 1000, PACKED)
    assert set(itertools.chain(*plan[1])) == {2}


@pytest.mark.parametrize("seed", range(6))
def test_on_two_ranks_the_slowest_is_hardly_above_the_mean(seed: int) -> None:
    found = drawn(seed, 2)
    plan = make_plan(found, range(len(found.rank_R)), 2, 500, PACKED)
    assert makespan(found, plan, PACKED) < 1.1 * found.tokens_R.sum() / 2


def test_rows_of_a_prompt_stay_together_and_compute_it_once() -> None:
    found = rows(*[(number % 2, 50, 10) for number in range(8)])
    plan = make_plan(found, range(8), 1, 130, SHARED)
    # 49 tokens of the prompt, then 4 × (its last token and 10).
    assert [SHARED.tokens(found, batch) for batch in plan[0]] == [49 + 44, 49 + 44]
    assert [{int(found.prompt_R[row]) for row in batch} for batch in plan[0]] in ([{0}, {1}], [{1}, {0}])


def test_a_family_is_torn_apart_where_that_lets_ranks_share_the_work() -> None:
    found = rows(*[(0, 20, 100) for _ in range(8)], ranks=2)
    plan = make_plan(found, range(8), 2, 10_000, SHARED)
    assert [len(own[0]) for own in plan] == [4, 4]


def test_attention_costs_what_a_layer_of_two_widths_says() -> None:
    # h = 100, i = 200: a token's linear layers do 2·(4·100² + 3·100·200) operations, attention of t tokens 2·100·t².
    linear, attention = 2 * (4 * 100**2 + 3 * 100 * 200), 2 * 100
    assert attention_cost(100, 200) == pytest.approx(attention / linear)


def test_the_longest_come_first_in_balancing() -> None:
    # 7 | 6 → 7 | 6+5 → 7+4 | 11 → 11 | 11 → 11+3 | 11
    assert [sum(part) for part in parts_of([3, 4, 5, 6, 7], 2)] == [14, 11]


def parts_of(values: list[int], parts: int) -> list[list[int]]:
    return [[values[index] for index in part] for part in balanced([float(value) for value in values], parts)]
