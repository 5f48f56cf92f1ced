"""Which rows go through the model together, on which rank: by lengths alone."""

from __future__ import annotations

import itertools
import random

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
from grpo_plugin.batching.units import worth_sharing

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


def test_a_short_prompt_is_computed_each_time() -> None:
    assert not worth_sharing(prompt_tokens=5, rows=8)
    assert worth_sharing(prompt_tokens=100, rows=8)
    assert not worth_sharing(prompt_tokens=100, rows=1)
    assert SHARED.families(rows((0, 5, 9), (0, 5, 9)), [0, 1]) == [(0,), (1,)]


def test_attention_costs_what_a_layer_of_two_widths_says() -> None:
    # h = 100, i = 200: a token's linear layers do 2·(4·100² + 3·100·200) operations, attention of t tokens 2·100·t².
    linear, attention = 2 * (4 * 100**2 + 3 * 100 * 200), 2 * 100
    assert attention_cost(100, 200) == pytest.approx(attention / linear)


def test_the_longest_come_first_in_balancing() -> None:
    # 7 | 6 → 7 | 6+5 → 7+4 | 11 → 11 | 11 → 11+3 | 11
    assert [sum(part) for part in parts_of([3, 4, 5, 6, 7], 2)] == [14, 11]


def parts_of(values: list[int], parts: int) -> list[list[int]]:
    return [[values[index] for index in part] for part in balanced([float(value) for value in values], parts)]
