"""The budget that is learnt from the memory of micro-batches: a line over tokens, and never more than twice as far."""

from __future__ import annotations

from typing import Any

import torch

from grpo_plugin.batching.auto_budget import SHARE, AutoBudget, Use, most_tokens
from grpo_plugin.batching.ranks import Ranks
from grpo_plugin.batching.table import Table
from tests.support.ranks import on_ranks

KIB = 1024


def test_what_fits_is_read_off_a_line_through_the_smallest_and_the_largest_micro_batch() -> None:
    # 1,000 bytes and 10 a token; 80 % of 5,000 hold 300 tokens.
    assert SHARE == 0.8
    assert most_tokens([Use(100, 2000), Use(200, 3000)], 5000) == 300
    assert most_tokens([Use(200, 3000), Use(100, 2000)], 5000) == 300


def test_no_micro_batch_is_more_than_twice_as_large_as_one_that_was_measured() -> None:
    assert most_tokens([Use(100, 2000), Use(200, 3000)], 10**9) == 400
    assert most_tokens([Use(100, 0)], 10**9) == 200, "and nothing was measured"


def test_sizes_that_are_about_the_same_tell_no_slope_so_that_all_bytes_count_as_the_tokens() -> None:
    assert most_tokens([Use(100, 2000), Use(120, 2050)], 5000) == 200
    assert most_tokens([Use(100, 2000), Use(120, 2050)], 3000) == 120


def test_the_line_is_not_below_any_micro_batch_that_was_measured() -> None:
    # Between 100 and 200 tokens one took 500 bytes more than the line says.
    assert most_tokens([Use(100, 2000), Use(150, 3000), Use(200, 3000)], 5000) == 250


def test_where_nothing_fits_each_row_is_alone() -> None:
    assert most_tokens([Use(100, 2000), Use(200, 3000)], 100) == 1


class Line:
    """A meter of a device whose micro-batches take a line."""

    def __init__(self, room_bytes: int, fixed: int, a_token: int):
        self.room_bytes, self.fixed, self.a_token = room_bytes, fixed, a_token
        self.tokens = 0

    def begin_step(self) -> int:
        return self.room_bytes

    def begin(self) -> None:
        pass

    def end(self) -> int:
        return self.fixed + self.a_token * self.tokens


def test_a_budget_grows_to_what_fits_in_a_few_steps_and_shrinks_with_the_room() -> None:
    meter = Line(room_bytes=1000 * KIB, fixed=100 * KIB, a_token=1 * KIB)
    budget, found, tokens = AutoBudget(meter), [], 60
    for step in range(8):
        meter.room_bytes = 1000 * KIB if step < 6 else 600 * KIB
        for first, meter.tokens in ((True, tokens), (False, tokens // 2)):
            budget.begin(first)
            budget.end(meter.tokens)
        found.append(tokens := budget.tokens)
    assert found == [120, 240, 480, 700, 700, 700, 380, 380]


def test_the_rank_with_the_least_room_decides_and_one_that_does_not_know_keeps_all_at_trls() -> None:
    def act(ranks: Ranks) -> Any:
        ids = torch.ones((2, 3), dtype=torch.int64)
        names = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")
        tables = [
            Table.of(dict.fromkeys(names, ids), 2, ranks, room) for room in (700 - 100 * ranks.rank, 700 * ranks.rank)
        ]
        return [table and table.most_tokens for table in tables]

    assert on_ranks(3, act) == [[500, 0]] * 3
