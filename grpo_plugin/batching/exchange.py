"""Moves rows between ranks: each to the rank that computes it, and what was computed back to the rank that wants it.

Owns which rows leave and arrive, and their order. Knows nothing of what the rows' fields mean.

Legend: R rows over all ranks.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from grpo_plugin.batching.plan import Ints, Plan
from grpo_plugin.batching.ranks import Ranks

Fields = dict[str, torch.Tensor]


def select(fields: Fields, rows: Sequence[int]) -> Fields:
    """Some rows of all fields."""
    return {
        name: value.index_select(0, torch.tensor(rows, dtype=torch.int64, device=value.device))
        for name, value in fields.items()
    }


def executors(plan: Plan, count: int) -> Ints:
    """The rank that computes each row; -1 for none."""
    target_R = np.full(count, -1, dtype=np.int64)
    for rank, batches in enumerate(plan):
        for batch in batches:
            target_R[list(batch)] = rank
    return target_R


def move(fields: Fields, source_R: Ints, plan: Plan, ranks: Ranks) -> tuple[list[int], Fields]:
    """The rows that this rank computes, and their numbers among the R: those that stay, then those that arrive.

    `fields` are as wide on every rank: `table.widths`.
    """
    held = [int(row) for row in np.flatnonzero(source_R == ranks.rank)]
    target_R = executors(plan, len(source_R))
    return exchange(fields, held, source_R, target_R, ranks)


def exchange(
    fields: Fields, held: Sequence[int], source_R: Ints, target_R: Ints, ranks: Ranks
) -> tuple[list[int], Fields]:
    """Moves rows from the ranks `source_R` that hold them to those `target_R` that want them; -1 is no rank.

    `fields` are this rank's rows `held`, in that order, and as wide on every rank. Only rows that move are sent.
    """
    place = {row: index for index, row in enumerate(held)}
    stays = [row for row in held if target_R[row] == ranks.rank]
    leaving = [
        [int(row) for row in np.flatnonzero((source_R == rank) & (target_R >= 0) & (target_R != rank))]
        for rank in range(ranks.count)
    ]
    most = max(len(rows) for rows in leaving)
    own = select(fields, [place[row] for row in stays])
    if most == 0:
        return stays, own
    sent = select(fields, [place[row] for row in leaving[ranks.rank]])
    arrivals = [
        (row, rank * most + index)
        for rank, rows in enumerate(leaving)
        for index, row in enumerate(rows)
        if target_R[row] == ranks.rank
    ]
    everyones = {name: ranks.gather(_with_rows(sent[name], most)) for name in sorted(fields)}
    arrived = select(everyones, [index for _, index in arrivals])
    return stays + [row for row, _ in arrivals], {name: torch.cat([own[name], arrived[name]]) for name in fields}


def _with_rows(value: torch.Tensor, rows: int) -> torch.Tensor:
    return torch.cat([value, value.new_zeros((rows - len(value), *value.shape[1:]))])
