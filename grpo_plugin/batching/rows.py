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
from enum import Enum
from typing import Any

import torch
from torch.nn import functional

from grpo_plugin.batching.exchange import Fields, Padded, fitted_to, move
from grpo_plugin.batching.plan import Plan, Rows
from grpo_plugin.batching.prepared import Prepared
from grpo_plugin.batching.ranks import Ranks
from grpo_plugin.batching.table import Table
from grpo_plugin.rewards.survivors import KEPT, ROW_WEIGHT, ROWS, SURVIVORS


class Per(Enum):
    """What a field holds a value for."""

    PROMPT_TOKEN = "prompt token"
    COMPLETION_TOKEN = "completion token"
    ROW = "row"


@dataclass(frozen=True, slots=True)
class Field:
    """What TRL's batches hold of each row under one name.

    `padding` stands where a row has no token, and is the value of a filler's row: it adds nothing to any loss or metric
    of TRL's. `wire` is the dtype in which the field travels between ranks, None its own.
    """

    name: str
    per: Per
    padding: float = 0.0
    wire: torch.dtype | None = None


# TRL's name of the ratio that corrects for the sampling engine (vLLM), and ours where it is one of whole completions:
# then its shape is (N, 1), which is also that of one of single tokens where no completion has a second token.
RATIO = "importance_sampling_ratio"
SEQUENCE_RATIO = "sequence_importance_sampling_ratio"

# GRPOTrainer._generate_and_score_completions, TRL 1.16, line 2893. TRL adds the logarithms of the ratios up without a
# mask (line 3008, `vespo`), and pads its own with 1.
_FIELDS = (
    Field("prompt_ids", Per.PROMPT_TOKEN, wire=torch.int32),
    Field("prompt_mask", Per.PROMPT_TOKEN, wire=torch.uint8),
    Field("completion_ids", Per.COMPLETION_TOKEN, wire=torch.int32),
    Field("completion_mask", Per.COMPLETION_TOKEN, wire=torch.uint8),
    Field("old_per_token_logps", Per.COMPLETION_TOKEN),
    Field("ref_per_token_logps", Per.COMPLETION_TOKEN),
    Field("sampling_per_token_logps", Per.COMPLETION_TOKEN),
    Field("tool_mask", Per.COMPLETION_TOKEN, padding=1.0, wire=torch.uint8),
    Field(RATIO, Per.COMPLETION_TOKEN, padding=1.0),
    Field(SEQUENCE_RATIO, Per.ROW, padding=1.0),
    Field("advantages", Per.ROW),
    Field(KEPT, Per.ROW),
)
FIELDS = {field.name: field for field in _FIELDS}
_STEP_VALUES = ("num_items_in_batch", ROW_WEIGHT, SURVIVORS)

# Completions of a micro-batch are at least this wide: TRL takes a tensor of width 1 for one with a value a row, and
# counts its rows where it should count its tokens (GRPOTrainer._compute_loss, TRL 1.16, line 3259).
_LEAST_WIDTH = 2

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
    def of(
        cls,
        batches: Sequence[dict[str, Any]],
        ranks: Ranks,
        sequence_ratios: bool = False,
        most_tokens: int = 0,
    ) -> StepRows | None:
        """None where a batch holds what cannot be rearranged (images), or a prompt is empty; alike on all ranks.

        `sequence_ratios` says that the ratios which correct for the sampling engine are those of whole completions;
        `most_tokens` is what this rank's memory has room for in a micro-batch.
        """
        merged = _merged(batches, sequence_ratios)
        fields, values = merged or (None, {})
        table = Table.of(fields, sum(len(batch["prompt_ids"]) for batch in batches), ranks, most_tokens)
        if fields is None or table is None:
            return None
        counts = [batch[SURVIVORS] for batch in batches if SURVIVORS in batch]
        return cls(fields, values, len(batches[0]["advantages"]), sum(counts) if counts else None, table)

    @property
    def rows(self) -> int:
        """TRL's rows on this rank."""
        return len(self.fields["advantages"])

    def micro_batches(self, plan: Plan, ranks: Ranks, multiple: int | None) -> Prepared[dict[str, Any]]:
        """This rank's part of the plan, trimmed; a filler without loss where it has fewer micro-batches than others.

        Rows move between ranks here; what each micro-batch is made of is put together when it is asked for.
        """
        held = move(self.fields, padded_fields(self.fields, self.table), self.table.rows.rank_R, plan, ranks)

        def make(number: int) -> dict[str, Any]:
            batch = plan[ranks.rank][number]
            rows = _wide_enough(held.select(batch, multiple)) if batch else filler(self.fields, multiple)
            return {**_named_as_trl(rows), **self._in_common(plan, number, len(batch))}

        return Prepared(len(plan[ranks.rank]), make)

    def _in_common(self, plan: Plan, number: int, rows: int) -> dict[str, Any]:
        """What a micro-batch of `rows` rows holds beside its rows."""
        shared = {name: value for name, value in self.values.items() if name != SURVIVORS}
        shared[ROW_WEIGHT] = self.values.get(ROW_WEIGHT, 1.0) * rows / self.batch_rows
        shared[MICRO_BATCH_STATS] = self._stats(plan, number)
        # What the step is made of is told once: the rows that came in, and how many of all ranks' survive.
        shared[ROWS] = self.rows if number == 0 else 0
        if self.survivors is not None:
            shared[SURVIVORS] = self.survivors if number == 0 else 0.0
        return shared

    def _stats(self, plan: Plan, number: int) -> MicroBatchStats:
        parts = [own[number] for own in plan]
        rows = [row for part in parts for row in part]
        fillers = sum(not part for part in parts)
        most = max(1, *(len(part) for part in parts))
        last = number == len(plan[0]) - 1
        return MicroBatchStats(int(self.table.loss_tokens_R[rows].sum()) if rows else 0, len(rows), fillers, most, last)


def _merged(batches: Sequence[dict[str, Any]], sequence_ratios: bool) -> tuple[Fields, dict[str, Any]] | None:
    """TRL's micro-batches as one, and what they have in common. None if they hold anything that is not known here."""
    known = {name: name for name in FIELDS} | {RATIO: SEQUENCE_RATIO if sequence_ratios else RATIO}
    names = [name for name, value in batches[0].items() if value is not None]
    if not {*known, *_STEP_VALUES}.issuperset(names) or batches[0]["advantages"].dim() != 1:
        return None
    fields = {known[name]: torch.cat([batch[name] for batch in batches]) for name in names if name in known}
    return fields, {name: batches[0][name] for name in names if name in _STEP_VALUES}


def _named_as_trl(fields: Fields) -> Fields:
    return {RATIO if name == SEQUENCE_RATIO else name: value for name, value in fields.items()}


def trimmed(
    batches: Sequence[dict[str, Any]], multiple: int | None, sequence_ratios: bool = False
) -> tuple[list[dict[str, Any]], Rows | None]:
    """TRL's micro-batches, each as narrow as its rows allow, and all their rows by the numbers that say so.

    The numbers are read from the device in one copy. The micro-batches as they are, and None, where they hold what is
    not known here or an empty prompt.
    """
    fields, _ = _merged(batches, sequence_ratios) or (None, {})
    count, here = sum(len(batch["prompt_ids"]) for batch in batches), batches[0]["prompt_ids"].device
    table = Table.of(fields, count, Ranks(0, 1, lambda value: value, here))
    if fields is None or table is None:
        return list(batches), None
    padded, found, first = padded_fields(fields, table), [], 0
    for batch in batches:
        rows = range(first, first := first + len(batch["prompt_ids"]))
        own = {name: value[rows.start : rows.stop] for name, value in fields.items()}
        fitted = _named_as_trl(_wide_enough(fitted_to(own, padded, rows, multiple)))
        found.append({**{name: value for name, value in batch.items() if value is not None}, **fitted})
    return found, table.rows


def few_widths(widest: int) -> int:
    """A multiple of which at most 16 are no wider than this; 8 at least."""
    return max(8, 1 << (max(1, widest) - 1).bit_length() >> 4)


def filler(fields: Fields, multiple: int | None = None) -> Fields:
    """A row of one prompt token and no completion, for the collectives of a forward and backward."""
    rows = fit({name: value[:1] for name, value in fields.items()}, multiple or 1, max(multiple or 1, _LEAST_WIDTH))
    of_the_row = ("prompt_ids", "prompt_mask", "completion_ids")
    return {
        name: value if name in of_the_row else torch.full_like(value, FIELDS[name].padding)
        for name, value in rows.items()
    }


def padded_fields(fields: Fields, table: Table) -> dict[str, Padded]:
    """How the fields with a value a token are padded, and as what they travel."""
    tokens_R = {
        Per.PROMPT_TOKEN: table.rows.prompt_tokens_R,
        Per.COMPLETION_TOKEN: table.rows.completion_tokens_R,
    }
    return {
        name: Padded(tokens_R[field.per], left=field.per is Per.PROMPT_TOKEN, padding=field.padding, wire=field.wire)
        for name, field in FIELDS.items()
        if name in fields and field.per in tokens_R
    }


# ------------------------------------------------------------------------------------------------------------ trimming


def fit(fields: Fields, prompt_width: int, completion_width: int) -> Fields:
    """The fields at these widths: cut or padded, prompts on their left and completions on their right."""
    fitted = {}
    for name, value in fields.items():
        field = FIELDS[name]
        if field.per is Per.PROMPT_TOKEN:
            kept = value[:, max(0, value.shape[1] - prompt_width) :]
            fitted[name] = functional.pad(kept, (prompt_width - kept.shape[1], 0), value=field.padding)
        elif field.per is Per.COMPLETION_TOKEN:
            fitted[name] = fit_completions(value, completion_width, field.padding)
        else:
            fitted[name] = value
    return fitted


def fit_completions(value_NT: torch.Tensor, width: int, padding: float = 0.0) -> torch.Tensor:
    """Cut to `width`, or padded."""
    return functional.pad(value_NT[:, :width], (0, max(0, width - value_NT.shape[1])), value=padding)


def _wide_enough(fields: Fields) -> Fields:
    prompt, completion = (fields[name].shape[1] for name in ("prompt_ids", "completion_ids"))
    return fields if completion >= _LEAST_WIDTH else fit(fields, prompt, _LEAST_WIDTH)
