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

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from grpo_plugin.batching.exchange import Fields, Padded, move, select
from grpo_plugin.batching.plan import Plan
from grpo_plugin.batching.ranks import Ranks
from grpo_plugin.batching.table import Table
from grpo_plugin.rewards.survivors import KEPT, ROW_WEIGHT, ROWS, SURVIVORS

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
        held = move(self.fields, padded_fields(self.fields, self.table), self.table.rows.rank_R, plan, ranks)
        found = []
        for number, batch in enumerate(plan[ranks.rank]):
            rows = held.select(batch, multiple) if batch else filler(self.fields, multiple)
            shared = {name: value for name, value in self.values.items() if name != SURVIVORS}
            shared[ROW_WEIGHT] = self.values.get(ROW_WEIGHT, 1.0) * len(batch) / self.batch_rows
            shared[MICRO_BATCH_STATS] = self._stats(plan, number)
            # What the step is made of is told once: the rows that came in, and how many of all ranks' survive.
            shared[ROWS] = self.rows if number == 0 else 0
            if self.survivors is not None:
                shared[SURVIVORS] = self.survivors if number == 0 else 0.0
            found.append({**rows, **shared})
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


def filler(fields: Fields, multiple: int | None = None) -> Fields:
    """A row of one prompt token and no completion, for the collectives of a forward and backward."""
    rows = fit(select(fields, [0]), multiple or 1, multiple or 1)
    for name in ("completion_mask", "advantages"):
        if name in rows:
            rows[name] = torch.zeros_like(rows[name])
    return rows


def padded_fields(fields: Fields, table: Table) -> dict[str, Padded]:
    """How the fields with a value a token are padded, and as what they travel: token ids as int32, masks as bytes."""
    width = fields["completion_ids"].shape[1]
    wires = {"ids": torch.int32, "mask": torch.uint8}
    found = {}
    for name, value in fields.items():
        wire = wires.get(name.rpartition("_")[2])
        if name in PROMPT_FIELDS:
            found[name] = Padded(table.rows.prompt_tokens_R, left=True, wire=wire)
        elif name in COMPLETION_FIELDS and value.shape[1] == width:
            found[name] = Padded(table.rows.completion_tokens_R, wire=wire)
    return found


# ------------------------------------------------------------------------------------------------------------ trimming


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
