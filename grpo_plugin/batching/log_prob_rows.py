"""A generation's rows, spread over ranks for forwards without gradient: the old and the reference log-probabilities.

Owns the way there and back: which rows this rank computes, and how the values return to the ranks that asked for them.
Knows nothing of models.

Legend: N rows on this rank, T tokens of the padded completions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from grpo_plugin.batching.exchange import Fields, HeldRows, Padded, exchange, executors, move, on_device
from grpo_plugin.batching.plan import MicroBatch, Plan
from grpo_plugin.batching.prepared import Prepared
from grpo_plugin.batching.ranks import Ranks
from grpo_plugin.batching.rows import filler, fit_completions, padded_fields
from grpo_plugin.batching.table import Table


@dataclass(frozen=True, slots=True)
class LogProbRows:
    """One rank's rows and those that it computes for others."""

    fields: Fields
    table: Table
    ranks: Ranks
    plan: Plan
    held: HeldRows

    @classmethod
    def of(
        cls,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        width: int,
        ranks: Ranks,
        plan_of: Callable[[Table], Plan],
        *,
        known: bool = True,
        most_tokens: int = 0,
    ) -> LogProbRows | None:
        """The rows of prompts and completions side by side, the latter `width` wide.

        None, alike on all ranks, if a prompt is empty or rows have more than is `known` here (images). `most_tokens` is
        what this rank's memory has room for in a micro-batch.
        """
        prompts = input_ids.shape[1] - width
        fields = {
            "prompt_ids": input_ids[:, :prompts],
            "prompt_mask": attention_mask[:, :prompts],
            "completion_ids": input_ids[:, prompts:],
            "completion_mask": attention_mask[:, prompts:],
        }
        table = Table.of(fields if known else None, len(input_ids), ranks, most_tokens)
        if table is None:
            return None
        plan = plan_of(table)
        held = move(fields, padded_fields(fields, table), table.rows.rank_R, plan, ranks)
        return cls(fields, table, ranks, plan, held)

    @property
    def _order(self) -> list[int]:
        return [row for batch in self.plan[self.ranks.rank] for row in batch]

    def parts(self, multiple: int | None) -> Prepared[Fields]:
        """What this rank computes, forward by forward; a filler where others compute more often."""
        own: Sequence[MicroBatch] = self.plan[self.ranks.rank]

        def make(number: int) -> Fields:
            return self.held.select(own[number], multiple) if own[number] else filler(self.fields, multiple)

        return Prepared(len(own), make)

    def returned(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """The values of this rank's own rows, shape (N, T); 0 for rows without tokens.

        `parts` are the values of the forwards of `parts()`, each as wide as its completions.
        """
        width = self.fields["completion_ids"].shape[1]
        order, lengths = self._order, {"values": Padded(self.table.rows.completion_tokens_R)}
        longest = lengths["values"].width(order)
        values = torch.cat([fit_completions(part, longest) for part in parts])[: len(order)]
        source_R = self.table.rows.rank_R
        back = exchange({"values": values}, lengths, order, executors(self.plan, len(source_R)), source_R, self.ranks)
        first = self.ranks.rank * len(self.fields["completion_ids"])
        index = on_device(np.asarray(back.rows) - first, values.device)
        found = values.new_zeros((len(self.fields["completion_ids"]), width))
        return found.index_copy(0, index, fit_completions(back.select(back.rows)["values"], width))
