"""An optimizer step's rows, regrouped into micro-batches that compute no more tokens than they must.

Owns what a plan of `batches` does to TRL's tensors: which of them a row has, how they are trimmed, how rows move
between ranks, and the weights that keep TRL's denominators. Knows nothing of models or of the trainer's state.

    step_rows = StepRows.of(batches, ranks)             TRL's micro-batches of one optimizer step; None: leave them be
    micro_batches = step_rows.micro_batches(plan, …)    ours, whose losses add up to the same

Why the sum is the same: TRL means over the B rows of a micro-batch, or divides by a count of the generation's tokens.
The first is a sum over rows / B, so a micro-batch of b rows weighs b / B (`ROW_WEIGHT`), wherever its rows come from;
the second does not care which rows are together. A row without advantage adds 0 to either.

Legend: N rows on this rank, R rows over all ranks, T tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from grpo_plugin.batching.plan import Ints, Plan, Rows
from grpo_plugin.rewards.survivors import KEPT, ROW_WEIGHT, ROWS, SURVIVORS, tokens_N

Fields = dict[str, torch.Tensor]

PROMPT_FIELDS = ("prompt_ids", "prompt_mask")
COMPLETION_FIELDS = (
    "completion_ids",
    "completion_mask",
    "old_per_token_logps",
    "ref_per_token_logps",
    "sampling_per_token_logps",
    "importance_sampling_ratio",
    "tool_mask",
)
_ROW_FIELDS = ("advantages", KEPT)
_STEP_VALUES = ("num_items_in_batch", ROW_WEIGHT, SURVIVORS)

MICRO_BATCH_STATS = "stats"  # the key under which a micro-batch of ours says what it is


@dataclass(frozen=True, slots=True)
class MicroBatchStats:
    """What a micro-batch holds over all ranks, which its metrics are weighed by."""

    tokens: int
    rows: int
    filler_rows: int
    most_rows: int  # on one rank, fillers included
    last: bool


@dataclass(frozen=True, slots=True)
class Ranks:
    """Which rank this is, and how ranks talk: `gather` joins tensors of equal shape along their first dimension."""

    rank: int
    count: int
    gather: Callable[[torch.Tensor], torch.Tensor]
    device: torch.device | str = "cpu"

    def all(self, fact: bool) -> bool:
        """Whether it is so on every rank: one may hold images where another's rows have none."""
        return fact if self.count == 1 else bool(self.gather(torch.tensor([fact], device=self.device)).all())


@dataclass(frozen=True, slots=True)
class Table:
    """The R rows of all ranks by the numbers that plans are made of; the same on every rank."""

    rows: Rows
    loss_tokens_R: Ints
    has_advantage_R: Ints
    width: int  # of the widest tensors as TRL padded them

    @classmethod
    def of(cls, fields: Fields, ranks: Ranks) -> Table:
        width = fields["prompt_ids"].shape[1] + fields["completion_ids"].shape[1]
        advantages = fields.get("advantages")
        columns = [
            fields["prompt_mask"].sum(1),
            fields["completion_mask"].sum(1),
            prompt_numbers(fields["prompt_ids"], fields["prompt_mask"]),
            tokens_N(fields),
            torch.ones(len(fields["prompt_ids"])) if advantages is None else advantages != 0,
            torch.full((len(fields["prompt_ids"]),), width),
        ]
        device = fields["prompt_ids"].device
        table = torch.stack([column.to(device=device, dtype=torch.int64) for column in columns], dim=1)
        prompt, completion, number, loss, advantage, widths = ranks.gather(table).cpu().numpy().T
        rank = np.repeat(np.arange(ranks.count), len(fields["prompt_ids"]))
        return cls(Rows(prompt, completion, number, rank), loss, advantage, int(widths.max()))

    def members(self, prune: bool) -> list[int]:
        """The rows that can have a gradient: those with tokens in the loss and, if `prune`, an advantage."""
        alive_R = (self.loss_tokens_R > 0) & ((self.has_advantage_R > 0) | (not prune))
        return [int(row) for row in np.flatnonzero(alive_R)]


def prompt_numbers(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """A number for each prompt, equal where the prompts are, on all ranks: 63 bits of a hash."""
    ids, keep = ids.cpu(), mask.cpu().bool()
    digests = [hashlib.blake2b(row[kept].numpy().tobytes(), digest_size=8) for row, kept in zip(ids, keep, strict=True)]
    return torch.tensor([int.from_bytes(digest.digest(), "little") >> 1 for digest in digests])


@dataclass(frozen=True, slots=True)
class StepRows:
    """One rank's rows of an optimizer step, or of its part that one generation holds."""

    fields: Fields
    values: dict[str, Any]  # what all rows of the step have in common
    batch_rows: int  # B, of TRL's micro-batches
    survivors: float | None
    table: Table

    @classmethod
    def of(cls, batches: Sequence[dict[str, Any]], ranks: Ranks) -> StepRows | None:
        """None where a batch holds what cannot be rearranged (images), or a prompt is empty; alike on all ranks."""
        merged = _merged(batches)
        if not ranks.all(merged is not None):
            return None
        assert merged is not None
        fields, values = merged
        table = Table.of(fields, ranks)
        if (table.rows.prompt_tokens_R == 0).any():
            return None
        counts = [batch[SURVIVORS] for batch in batches if SURVIVORS in batch]
        return cls(fields, values, len(batches[0]["advantages"]), sum(counts) if counts else None, table)

    @property
    def rows(self) -> int:
        """TRL's rows on this rank."""
        return len(self.fields["advantages"])

    def micro_batches(self, plan: Plan, ranks: Ranks, multiple: int | None) -> list[dict[str, Any]]:
        """This rank's part of the plan, trimmed; a filler without loss where it has fewer micro-batches than others."""
        held, fields = move(self.fields, self.table, plan, ranks)
        place = {row: index for index, row in enumerate(held)}
        found = []
        for number, batch in enumerate(plan[ranks.rank]):
            rows = filler(self.fields) if not batch else select(fields, [place[row] for row in batch])
            shared = {name: value for name, value in self.values.items() if name != SURVIVORS}
            shared[ROW_WEIGHT] = self.values.get(ROW_WEIGHT, 1.0) * len(batch) / self.batch_rows
            shared[MICRO_BATCH_STATS] = self._stats(plan, number)
            # What the step is made of is told once: the rows that came in, and how many of all ranks' survive.
            shared[ROWS] = self.rows if number == 0 else 0
            if self.survivors is not None:
                shared[SURVIVORS] = self.survivors if number == 0 else 0.0
            found.append({**trim(rows, multiple), **shared})
        return found

    def _stats(self, plan: Plan, number: int) -> MicroBatchStats:
        parts = [own[number] for own in plan]
        rows = [row for part in parts for row in part]
        fillers = sum(not part for part in parts)
        most = max(1, *(len(part) for part in parts))
        last = number == len(plan[0]) - 1
        return MicroBatchStats(int(self.table.loss_tokens_R[rows].sum()) if rows else 0, len(rows), fillers, most, last)


def _merged(batches: Sequence[dict[str, Any]]) -> tuple[Fields, dict[str, Any]] | None:
    """TRL's micro-batches as one, and what they have in common. None if they hold anything that is not known here."""
    names = [name for name, value in batches[0].items() if value is not None]
    per_row = {*PROMPT_FIELDS, *COMPLETION_FIELDS, *_ROW_FIELDS}
    if not per_row.union(_STEP_VALUES).issuperset(names) or batches[0]["advantages"].dim() != 1:
        return None
    fields = {name: torch.cat([batch[name] for batch in batches]) for name in names if name in per_row}
    return fields, {name: batches[0][name] for name in names if name in _STEP_VALUES}


def trimmed(batch: dict[str, Any], multiple: int | None) -> dict[str, Any]:
    """TRL's micro-batch, as narrow as its rows allow; itself if it holds what is not known here."""
    merged = _merged([batch])
    return batch if merged is None else {**trim(merged[0], multiple), **merged[1]}


def filler(fields: Fields) -> Fields:
    """A row of one prompt token and no completion, for the collectives of a forward and backward."""
    rows = fit(select(fields, [0]), 1, 1)
    for name in ("completion_mask", "advantages"):
        if name in rows:
            rows[name] = torch.zeros_like(rows[name])
    return rows


# ------------------------------------------------------------------------------------------------------------ trimming


def select(fields: Fields, rows: Sequence[int]) -> Fields:
    """Some rows of all fields."""
    return {
        name: value.index_select(0, torch.tensor(rows, dtype=torch.int64, device=value.device))
        for name, value in fields.items()
    }


def trim(fields: Fields, multiple: int | None = None) -> Fields:
    """The fields, as wide as their longest prompt and completion, rounded up to a multiple; never narrower than 1."""
    prompt, completion = (int(fields[name].sum(1).max()) for name in ("prompt_mask", "completion_mask"))
    step = multiple or 1
    return fit(fields, *(-(-max(1, tokens) // step) * step for tokens in (prompt, completion)))


def fit(fields: Fields, prompt_width: int, completion_width: int) -> Fields:
    """The fields at these widths: cut, or padded with 0, prompts on their left and completions on their right."""
    width = fields["completion_ids"].shape[1]
    fitted = {}
    for name, value in fields.items():
        if name in PROMPT_FIELDS:
            kept = value[:, max(0, value.shape[1] - prompt_width) :]
            fitted[name] = functional.pad(kept, (prompt_width - kept.shape[1], 0))
        elif name in COMPLETION_FIELDS and value.shape[1] == width:
            fitted[name] = fit_completions(value, completion_width)
        else:
            fitted[name] = value  # one value a row
    return fitted


def fit_completions(value_NT: torch.Tensor, width: int) -> torch.Tensor:
    """Cut to `width`, or padded with 0."""
    return functional.pad(value_NT[:, :width], (0, max(0, width - value_NT.shape[1])))


# ---------------------------------------------------------------------------------------------------- moving over ranks


def executors(plan: Plan, count: int) -> Ints:
    """The rank that computes each row; -1 for none."""
    target_R = np.full(count, -1, dtype=np.int64)
    for rank, batches in enumerate(plan):
        for batch in batches:
            target_R[list(batch)] = rank
    return target_R


def move(fields: Fields, table: Table, plan: Plan, ranks: Ranks) -> tuple[list[int], Fields]:
    """The rows that this rank computes, and their numbers among the R: those that stay, then those that arrive."""
    source_R = table.rows.rank_R
    held = [int(row) for row in np.flatnonzero(source_R == ranks.rank)]
    target_R = executors(plan, len(source_R))
    fields = fit(fields, int(table.rows.prompt_tokens_R.max()), max(1, int(table.rows.completion_tokens_R.max())))
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
