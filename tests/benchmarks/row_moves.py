"""What it takes that all ranks finish together: rows that move, bytes that travel, and the time to plan. A simulation.

Ranks of 64 rows in groups of 8, with completion lengths drawn log-normally; half the groups have no signal in the cases
named `half`. Compared are the plan, which starts from where rows are and moves few of them, and dealing all rows out
anew, longest first (Graham 1969), with each part on the rank that holds most of it.

    python tests/benchmarks/row_moves.py [--ranks 8,64,256] [--cases full,half,long] [--layouts packed,shared,padded]

Columns: rows that move; the cost of the slowest rank over the mean, padding included (before: if no row moves); the
most bytes that a rank holds for the exchange, sent and received, with each field of the rows dealt anew all-gathered at
full width to every rank, and in one all-to-all without padding (measured where the real exchange calls the collective);
seconds of one core to plan, the median of 3.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from grpo_plugin.batching.exchange import Fields, Padded, exchange, executors
from grpo_plugin.batching.plan import Ints, Layout, PackedLayout, PaddedLayout, Rows, attention_cost, make_plan
from grpo_plugin.batching.ranks import Ranks
from grpo_plugin.batching.rows import padded_fields
from grpo_plugin.batching.spread import Work, dealt
from grpo_plugin.batching.table import Table

ROWS_A_RANK = 64
GROUP = 8
ATTENTION = attention_cost(hidden=896, intermediate=4864)  # of Qwen2.5-0.5B

LAYOUTS: dict[str, Layout] = {
    "packed": PackedLayout(ATTENTION, shares=False),
    "shared": PackedLayout(ATTENTION, shares=True),
    "padded": PaddedLayout(ATTENTION, overhead_tokens=1024),
}


@dataclass(frozen=True)
class Case:
    """Completions of `median` tokens, σ `sigma`, at most `longest`; prompts of up to `prompt` tokens."""

    prompt: int
    median: int
    sigma: float
    longest: int
    silent: float = 0.0  # share of groups without signal


CASES = {
    "full": Case(prompt=200, median=200, sigma=0.6, longest=1024),
    "half": Case(prompt=200, median=200, sigma=0.6, longest=1024, silent=0.5),
    "long": Case(prompt=1000, median=3000, sigma=1.0, longest=32_768),
}


@dataclass(frozen=True)
class Found:
    """The numbers of one line of the table."""

    rows: int
    moved: int
    moved_anew: int
    slowest_before: float
    slowest: float
    slowest_anew: float
    bytes_all_to_all: int
    bytes_all_gather: int
    plan_s: float


def drawn(case: Case, ranks: int, seed: int = 0) -> tuple[Rows, list[int]]:
    """Rows as TRL lays them out, and those that are computed."""
    chance = np.random.default_rng(seed)
    count = ranks * ROWS_A_RANK
    group_R = np.arange(count) // GROUP
    prompts = chance.integers(case.prompt // 4, case.prompt + 1, count // GROUP)
    completions = np.exp(chance.normal(np.log(case.median), case.sigma, count)).astype(np.int64)
    loud = chance.random(count // GROUP) >= case.silent
    rank_R = np.repeat(np.arange(ranks), ROWS_A_RANK)
    rows = Rows(prompts[group_R], np.clip(completions, 1, case.longest), group_R, rank_R)
    return rows, np.flatnonzero(loud[group_R]).tolist()


def measure(case: Case, ranks: int, layout: Layout) -> Found:
    rows, members = drawn(case, ranks)
    budget = 8 * int(rows.prompt_tokens_R.max() + rows.completion_tokens_R.max())
    seconds = []
    for _ in range(3):
        began = time.process_time()
        plan = make_plan(rows, members, ranks, budget, layout)
        seconds.append(time.process_time() - began)
    target_R = executors(plan, len(rows.rank_R))
    anew_R, home_R = _dealt_anew(rows, members, ranks, layout), np.where(target_R >= 0, rows.rank_R, -1)
    return Found(
        len(members),
        *(int(((to >= 0) & (to != rows.rank_R)).sum()) for to in (target_R, anew_R)),
        *(_slowest_over_mean(rows, to, ranks, budget, layout) for to in (home_R, target_R, anew_R)),
        _most_bytes(rows, target_R, ranks),
        _gathered_bytes(rows, anew_R, ranks),
        median(seconds),
    )


def _dealt_anew(rows: Rows, members: Sequence[int], ranks: int, layout: Layout) -> Ints:
    """Whole groups where prompts are shared, else single rows."""
    index = np.asarray(members)
    tokens = rows.tokens_R[index]
    units = rows.prompt_R[index] if isinstance(layout, PackedLayout) and layout.shares else np.arange(len(index))
    cost = np.rint(tokens + ATTENTION * tokens**2).astype(np.int64)
    target_R = np.full(len(rows.rank_R), -1)
    target_R[index] = dealt(Work(cost, np.zeros_like(cost), units, rows.rank_R[index]), ranks)
    return target_R


def _slowest_over_mean(rows: Rows, target_R: Ints, ranks: int, budget: int, layout: Layout) -> float:
    """Each rank's rows in micro-batches of its own, padding included."""
    alone, costs = replace(rows, rank_R=np.zeros_like(rows.rank_R)), []
    for rank in range(ranks):
        (batches,) = make_plan(alone, np.flatnonzero(target_R == rank).tolist(), 1, budget, layout)
        costs.append(sum(layout.cost(rows, batch) for batch in batches))
    return max(costs) / (sum(costs) / len(costs))


# --------------------------------------------------------------------------------------------------- bytes that travel


def _fields(rows: int, prompt_width: int, completion_width: int) -> Fields:
    """TRL's fields of so many rows; one value in memory for each, since only sizes matter."""

    def of(width: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.zeros((1, 1), dtype=dtype).expand(rows, width)

    return {
        "prompt_ids": of(prompt_width, torch.int64),
        "prompt_mask": of(prompt_width, torch.int64),
        "completion_ids": of(completion_width, torch.int64),
        "completion_mask": of(completion_width, torch.int64),
        "old_per_token_logps": of(completion_width, torch.float32),
        "advantages": torch.zeros(rows),
    }


def _most_bytes(rows: Rows, target_R: Ints, ranks: int) -> int:
    """The most that a rank sends and receives in the real exchange, of which only the collective is left out."""
    widths = int(rows.prompt_tokens_R.max()), int(rows.completion_tokens_R.max())
    fields = _fields(ROWS_A_RANK, *widths)
    table = Table(rows, rows.completion_tokens_R, np.ones_like(rows.rank_R), sum(widths))
    padded = padded_fields(fields, table)
    return max(_bytes_of_rank(rank, fields, padded, rows, target_R, ranks) for rank in range(ranks))


def _bytes_of_rank(rank: int, fields: Fields, padded: dict[str, Padded], rows: Rows, target_R: Ints, ranks: int) -> int:
    total = 0

    def all_to_all(sent: torch.Tensor, sent_sizes: Sequence[int], received_sizes: Sequence[int]) -> torch.Tensor:
        nonlocal total
        total = sent.nbytes + sum(received_sizes)
        return torch.zeros(sum(received_sizes), dtype=sent.dtype)

    held = np.flatnonzero(rows.rank_R == rank).tolist()
    exchange(fields, padded, held, rows.rank_R, target_R, Ranks(rank, ranks, torch.clone, all_to_all=all_to_all))
    return total


def _gathered_bytes(rows: Rows, target_R: Ints, ranks: int) -> int:
    """What an all-gather of the rows that move brings to every rank: from each as many as from the one with most."""
    moves_R = (target_R >= 0) & (target_R != rows.rank_R)
    most = int(np.bincount(rows.rank_R[moves_R], minlength=ranks).max())
    fields = _fields(1, int(rows.prompt_tokens_R.max()), int(rows.completion_tokens_R.max()))
    return ranks * most * sum(value.numel() * value.element_size() for value in fields.values())


# ----------------------------------------------------------------------------------------------------------- the table


HEAD = "case  layout  ranks   rows   moved   anew  before slowest   anew   all-gather   all-to-all      plan"


def line(name: str, layout: str, ranks: int, found: Found) -> str:
    return (
        f"{name:5} {layout:7} {ranks:5} {found.rows:6}  {found.moved:6} {found.moved_anew:6}"
        f"  {found.slowest_before:6.3f} {found.slowest:7.3f} {found.slowest_anew:6.3f}"
        f"  {found.bytes_all_gather / 1e6:8,.1f} MB {found.bytes_all_to_all / 1e6:8,.2f} MB  {found.plan_s:6.3f} s"
    )


def main(arguments: Sequence[str] | None = None) -> dict[tuple[str, str, int], Found]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", default="8,64,256")
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--layouts", default=",".join(LAYOUTS))
    options = parser.parse_args(arguments)
    print(HEAD)
    table = {}
    for name in options.cases.split(","):
        for layout in options.layouts.split(","):
            for ranks in map(int, options.ranks.split(",")):
                table[name, layout, ranks] = measure(CASES[name], ranks, LAYOUTS[layout])
                print(line(name, layout, ranks, table[name, layout, ranks]), flush=True)
    return table


if __name__ == "__main__":
    main()
