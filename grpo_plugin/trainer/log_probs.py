"""`LogProbsTrainer`: TRL's GRPOTrainer, whose log-probabilities are computed in the cheapest layout that is exact.

Short overrides around `super()`. Owns how rows go through the model: the layout, one micro-batch with gradient, and the
pass without gradient over a whole generation, in which each row is computed on whichever rank has time for it. Knows
nothing of losses, of optimizer steps or of rewards.

Legend: N rows on this rank, T tokens of the padded completions.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from accelerate.logging import get_logger
from trl import GRPOTrainer

from grpo_plugin.batching.auto_budget import AutoBudget, MemoryMeter, meter_of
from grpo_plugin.batching.exactness import reason_to_keep_padding
from grpo_plugin.batching.forward import PACKING, find_layout, packed_forward, with_packing
from grpo_plugin.batching.kernels import unused_kernels
from grpo_plugin.batching.log_prob_rows import LogProbRows
from grpo_plugin.batching.memo import Memo
from grpo_plugin.batching.packing import DeviceIndex
from grpo_plugin.batching.plan import Layout, PackedLayout, Plan, make_plan
from grpo_plugin.batching.ranks import Ranks
from grpo_plugin.batching.rows import few_widths
from grpo_plugin.batching.table import Table
from grpo_plugin.config import setting

logger = get_logger(__name__)

Batch = dict[str, Any]


class LogProbsTrainer(GRPOTrainer):
    """`trl.GRPOTrainer` whose forwards skip padding, if `args.token_batches` says so; else TRL's own, untouched."""

    accelerator: Any
    # On the class, for trainers made without __init__.
    _layout_found: tuple[Layout | None] | None = None
    _memory_meter: MemoryMeter | None = None  # in place of the device's own
    _packing: DeviceIndex | None = None  # of the micro-batch that is due, where it is known

    @property
    def _ranks(self) -> Ranks:
        accelerator = self.accelerator
        return Ranks(accelerator.process_index, accelerator.num_processes, accelerator.gather, accelerator.device)

    @property
    def _layout(self) -> Layout | None:
        """How rows go through the model, None for TRL's way; found out on first use, by all ranks at once."""
        if self._layout_found is None:
            reason = reason_to_keep_padding(self)
            if reason:
                logger.warning_once(f"rows keep TRL's padding and micro-batches, since {reason}")
            self._layout_found = (None if reason else self._find_layout(),)
        return self._layout_found[0]

    def _find_layout(self) -> Layout | None:
        advice = unused_kernels(self.args, self.model, self.accelerator.device)
        if advice:
            logger.warning(advice)
        weights = next(self.model.parameters())
        return find_layout(
            self.model,
            self.model.config.get_text_config(),
            self._trls_log_probs,
            self.accelerator.autocast,
            self._ranks,
            half=self.accelerator.mixed_precision != "no" or weights.dtype in (torch.float16, torch.bfloat16),
            packs=setting(self.args, "padding_free"),
            shares=setting(self.args, "shared_prefix"),
        )

    def _trls_log_probs(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, width: int) -> torch.Tensor:
        log_probs: torch.Tensor
        log_probs, _, _ = super()._get_per_token_logps_and_entropies(self.model, input_ids, attention_mask, width)
        return log_probs

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        **multimodal: Any,
    ) -> Any:
        # TRL 1.16, line 1419. Called without gradient for the old and reference log-probabilities of a generation, in
        # chunks of `batch_size`, and with gradient for one micro-batch.
        layout = self._layout if setting(self.args, "token_batches") and self.model.training else None
        known = not compute_aux_loss and all(value is None for value in multimodal.values())
        if layout is not None and not torch.is_grad_enabled() and not compute_entropy:
            spread = self._log_probs(model, input_ids, attention_mask, logits_to_keep, batch_size, known)
            if spread is not None:
                return spread, None, None
        if isinstance(layout, PackedLayout) and torch.is_grad_enabled() and known:
            autocast, packing = self.accelerator.autocast, self._packing
            found = packed_forward(model, input_ids, attention_mask, logits_to_keep, layout, autocast, packing)
            return *found, None
        return super()._get_per_token_logps_and_entropies(
            model,
            input_ids,
            attention_mask,
            logits_to_keep,
            batch_size=batch_size,  # TRL 1.14 takes only these by keyword
            compute_entropy=compute_entropy,
            compute_aux_loss=compute_aux_loss,
            **multimodal,
        )

    # ----------------------------------------------------------------------------------- a generation, without gradient

    def _log_probs(
        self,
        model: Any,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        width: int,
        batch_size: int | None,
        known: bool,
    ) -> torch.Tensor | None:
        """The log-probabilities of completions that are `width` wide, shape (N, T); None where rows go TRL's way."""

        def make() -> tuple[LogProbRows | None, torch.Tensor]:
            rows = LogProbRows.of(
                input_ids,
                attention_mask,
                width,
                self._ranks,
                self._log_prob_plan(batch_size),
                known=known,
                most_tokens=self._most_tokens,
            )
            return rows, attention_mask  # which is kept so that its id stays its own

        key = (id(attention_mask), width, batch_size)
        rows, _ = self._log_prob_rows.get(input_ids, key, make)  # the same for old and for reference log-probabilities
        return None if rows is None else self._computed(model, rows)

    def _computed(self, model: Any, rows: LogProbRows) -> torch.Tensor:
        """Forward by forward; the tensors of the next are made while the device computes this one."""
        parts, own, values = rows.parts(self._multiple_of(rows.table.width)), rows.plan[self._ranks.rank], []
        for number, batch in enumerate(own):
            (part,) = with_packing([parts[number]], [batch], rows.table.rows, self._layout)
            values.append(self._log_probs_of(model, part))
        return rows.returned(values)

    def _multiple_of(self, widest: int) -> int | None:
        """What the widths of padded rows are rounded up to: TRL's setting, or where shapes should come back, ours."""
        if self.pad_to_multiple_of or not self._wants_few_shapes or isinstance(self._layout, PackedLayout):
            return self.pad_to_multiple_of
        return few_widths(widest)

    @property
    def _wants_few_shapes(self) -> bool:
        """A GPU's allocator and kernels gain from shapes that come back; a CPU would only compute more."""
        return self.accelerator.device.type != "cpu"

    @functools.cached_property
    def _log_prob_rows(self) -> Memo:
        return Memo()

    def _log_prob_plan(self, batch_size: int | None) -> Callable[[Table], Plan]:
        layout, ranks = self._layout, self._ranks
        assert layout is not None

        def make(table: Table) -> Plan:
            budget = self._budget(batch_size or len(table.rows.rank_R) // ranks.count, table)
            return make_plan(table.rows, table.members(prune=False), ranks.count, budget, layout)

        return make

    def _budget(self, rows: int, table: Table) -> int:
        """The most tokens of a micro-batch: the setting, or what memory has room for, or `rows` rows of TRL's width."""
        most = setting(self.args, "max_tokens_per_micro_batch")
        return most if isinstance(most, int) else table.most_tokens or rows * table.width

    @functools.cached_property
    def _auto_budget(self) -> AutoBudget | None:
        """What learns the budget, if it is to be learnt and there is memory to measure."""
        if setting(self.args, "max_tokens_per_micro_batch") != "auto":
            return None
        meter = self._memory_meter or meter_of(self.accelerator.device)
        if meter is None:
            logger.warning_once(
                f"max_tokens_per_micro_batch 'auto' measures the memory of CUDA devices; on {self.accelerator.device} "
                "micro-batches take what stock TRL's take"
            )
        return None if meter is None else AutoBudget(meter)

    @property
    def _most_tokens(self) -> int:
        """What this rank's memory has room for in a micro-batch, 0 where that is not known."""
        return 0 if self._auto_budget is None else self._auto_budget.tokens

    def _log_probs_of(self, model: Any, part: Batch) -> torch.Tensor:
        """Of one forward's rows, as wide as their completions."""
        ids = torch.cat([part["prompt_ids"], part["completion_ids"]], dim=1)
        mask = torch.cat([part["prompt_mask"], part["completion_mask"]], dim=1)
        width = part["completion_ids"].shape[1]
        if isinstance(self._layout, PackedLayout):
            autocast, packing = self.accelerator.autocast, part[PACKING]
            return packed_forward(model, ids, mask, width, self._layout, autocast, packing)[0]
        values: torch.Tensor = super()._get_per_token_logps_and_entropies(model, ids, mask, width)[0]
        return values
