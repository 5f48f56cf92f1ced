"""Rows reach the rank that asks for them with all that they have; only rows that move are sent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from grpo_plugin.batching.exchange import Fields, Padded, exchange, select
from grpo_plugin.batching.plan import Ints
from grpo_plugin.batching.ranks import Ranks
from tests.support.ranks import on_gloo, on_ranks

ROWS = 12
SOURCE_R = {count: np.repeat(np.arange(count), ROWS // count) for count in (2, 3, 4)}


def all_fields(seed: int) -> tuple[Fields, dict[str, Padded]]:
    """Twelve rows with fields of each kind: whole numbers, truth values, floats; a value a token and one a row."""
    draw = torch.Generator().manual_seed(seed)
    prompts, completions = (torch.randint(1, 6, (ROWS,), generator=draw).numpy() for _ in range(2))
    padded = {
        "prompt_ids": Padded(prompts, left=True, wire=torch.int32),
        "mask": Padded(completions, wire=torch.uint8),
        "flags": Padded(completions),
        "ratios": Padded(completions, padding=1.0),
    }
    whole = {
        "prompt_ids": torch.randint(0, 2**31 - 1, (ROWS, 7), generator=draw),
        "mask": torch.randint(0, 2, (ROWS, 6), generator=draw),
        "flags": torch.rand((ROWS, 6), generator=draw) < 0.5,
        "ratios": torch.rand((ROWS, 6), generator=draw),
    }
    for name, value in whole.items():
        tokens = torch.from_numpy(padded[name].tokens_R)[:, None]
        place = torch.arange(value.shape[1])[None, :]
        inside = place >= value.shape[1] - tokens if padded[name].left else place < tokens
        whole[name] = torch.where(inside, value, torch.tensor(padded[name].padding, dtype=value.dtype))
    whole["advantages"] = torch.rand(ROWS, generator=draw, dtype=torch.float64)
    whole["per_row"] = torch.rand((ROWS, 1), generator=draw).to(torch.bfloat16)
    return whole, padded


TARGETS = {
    "some rows move, some are computed nowhere": lambda count, draw: draw.integers(-1, count, ROWS),
    "all rows move": lambda count, draw: (SOURCE_R[count] + 1) % count,
    "the first rank sends nothing": lambda count, draw: np.where(
        SOURCE_R[count] == 0, 0, draw.integers(0, count, ROWS)
    ),
    "all rows go to the last rank": lambda count, draw: np.full(ROWS, count - 1),
    "no row moves": lambda count, draw: SOURCE_R[count].copy(),
}


def exchanged(ranks: Ranks, source_R: Ints, target_R: Ints, seed: int) -> tuple[list[int], Fields, list[str]]:
    """This rank's rows after an exchange, and the collective calls that it made."""
    calls: list[str] = []

    def counted(sent: torch.Tensor, sizes: Sequence[int], received_sizes: Sequence[int]) -> torch.Tensor:
        calls.append("all_to_all")
        return ranks.all_to_all(sent, sizes, received_sizes)

    whole, padded = all_fields(seed)
    held = np.flatnonzero(source_R == ranks.rank).tolist()
    counting = replace(ranks, all_to_all=counted)
    found = exchange(select(whole, held), padded, held, source_R, target_R, counting)
    wanted = sorted(found.rows, key=lambda row: (row * 7) % ROWS)  # neither sorted nor own rows first
    return wanted, found.select(wanted), calls


def is_as_gathered(found: tuple[list[int], Fields, list[str]], rank: int, target_R: Ints, seed: int) -> None:
    """Whether these are the rows that the rank asked for, as an all-gather of everything would have given them."""
    rows, fields, calls = found
    assert sorted(rows) == np.flatnonzero(target_R == rank).tolist()
    assert len(calls) <= 1
    whole, padded = all_fields(seed)
    for name, value in select(whole, rows).items():
        expected = padded[name].fit(value, padded[name].width(rows)) if name in padded else value
        assert fields[name].dtype == value.dtype, name
        assert torch.equal(fields[name], expected), name


@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize("case", TARGETS)
def test_rows_arrive_as_if_everything_had_been_gathered(case: str, count: int) -> None:
    for seed in range(4):
        target_R = TARGETS[case](count, np.random.default_rng(seed))
        found = on_ranks(count, lambda ranks, to=target_R, seed=seed: exchanged(ranks, SOURCE_R[count], to, seed))
        for rank, one in enumerate(found):
            is_as_gathered(one, rank, target_R, seed)
        assert len({len(calls) for *_, calls in found}) == 1, "ranks that make different calls wait for one another"


def all_cases(ranks: Ranks) -> list[Any]:
    """Every case, one after another: what a process of `on_gloo` runs."""
    found: list[Any] = []
    for seed, case in enumerate(TARGETS):
        target_R = TARGETS[case](ranks.count, np.random.default_rng(seed))
        found.append(exchanged(ranks, SOURCE_R[ranks.count], target_R, seed))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3])
def test_processes_that_talk_over_gloo_get_the_same_rows(count: int, tmp_path: Path) -> None:
    found = on_gloo(count, tmp_path, all_cases)
    for seed, case in enumerate(TARGETS):
        target_R = TARGETS[case](count, np.random.default_rng(seed))
        for rank in range(count):
            is_as_gathered(found[rank][seed], rank, target_R, seed)
        assert len({len(found[rank][seed][2]) for rank in range(count)}) == 1, case


def test_only_the_tokens_of_rows_that_move_are_sent() -> None:
    # Row 1 moves from rank 0 to rank 1: 2 ids as int32 and 2 mask values as bytes, of tensors 100 wide.
    sent: list[int] = []
    padded = {
        "ids": Padded(np.array([3, 2, 9, 1]), wire=torch.int32),
        "mask": Padded(np.array([3, 2, 9, 1]), wire=torch.uint8),
    }

    def act(ranks: Ranks) -> None:
        def counted(values: torch.Tensor, sizes: Sequence[int], received_sizes: Sequence[int]) -> torch.Tensor:
            sent.append(values.numel() * values.element_size())
            return ranks.all_to_all(values, sizes, received_sizes)

        fields = {"ids": torch.ones((2, 100), dtype=torch.int64), "mask": torch.ones((2, 100), dtype=torch.int64)}
        held = [2 * ranks.rank, 2 * ranks.rank + 1]
        counting = replace(ranks, all_to_all=counted)
        exchange(fields, padded, held, np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1]), counting)

    on_ranks(2, act)
    assert sorted(sent) == [0, 2 * 4 + 2 * 1]


def test_what_is_computed_elsewhere_comes_back_in_order() -> None:
    def act(ranks: Ranks) -> Any:
        owner, computes = np.array([0, 0, 1, 1]), np.array([1, 0, -1, 0])
        held = [[0, 1], [2, 3]][ranks.rank]
        there = exchange({"x": torch.tensor(held)[:, None]}, {}, held, owner, computes, ranks)
        rows = there.rows[::-1]
        computed = {"x": there.select(rows)["x"] * 10.0}
        back = exchange(computed, {}, rows, computes, owner, ranks)
        return dict(zip(back.rows, back.select(back.rows)["x"][:, 0].tolist(), strict=True))

    assert on_ranks(2, act) == [{1: 10.0, 0: 0.0}, {3: 30.0}]


def test_a_rank_keeps_no_copy_of_rows_that_stay_and_arrivals_are_as_wide_as_they_are_long() -> None:
    def act(ranks: Ranks) -> Any:
        fields = {"ids": torch.full((2, 50), ranks.rank)}
        held = [2 * ranks.rank, 2 * ranks.rank + 1]
        padded = {"ids": Padded(np.array([50, 3, 50, 50]))}
        found = exchange(fields, padded, held, np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1]), ranks)
        return found.fields["ids"] is fields["ids"], tuple(found.arrived["ids"].shape)

    assert on_ranks(2, act) == [(True, (0, 1)), (True, (1, 3))]
