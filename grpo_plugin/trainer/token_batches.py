"""`TokenBatchTrainer`: TRL's GRPOTrainer, whose forwards compute no token that changes nothing.

Short overrides around `super()`. `batches` plans, `windows` regroups an optimizer step's rows, `forwards` runs them,
`exactness` says when not to. Knows nothing of rewards.

Where TRL's loop runs A micro-batches of B rows for an optimizer step, this trainer takes the step's rows when the
first is due, makes micro-batches of tokens of them, and runs those in the same A calls: none in the first ones where
they are fewer, several in one where they are more. The last call, in which gradients are reduced and the optimizer
steps, always has one.

Legend: N rows on this rank, R rows over all ranks, A gradient accumulation steps, B rows of TRL's micro-batch.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from accelerate.logging import get_logger
from accelerate.utils import DistributedType
from trl import GRPOTrainer

from grpo_plugin.batching.exactness import reason_to_keep_micro_batches, reason_to_keep_rows
from grpo_plugin.batching.forward import find_layout, packed_forward
from grpo_plugin.batching.log_prob_rows import LogProbRows
from grpo_plugin.batching.memo import Memo
from grpo_plugin.batching.metrics import StepMetrics, UnevenRows
from grpo_plugin.batching.plan import Layout, PackedLayout, Plan, make_plan
from grpo_plugin.batching.ranks import Ranks
from grpo_plugin.batching.rows import (
    MICRO_BATCH_STATS,
    MicroBatchStats,
    StepRows,
    trimmed,
)
from grpo_plugin.batching.table import Table
from grpo_plugin.config import setting
from grpo_plugin.rewards.survivors import ROW_MEAN_LOSSES, ROW_WEIGHT

logger = get_logger(__name__)

Batch = dict[str, Any]


class TokenBatchTrainer(GRPOTrainer):
    """`trl.GRPOTrainer` with micro-batches of tokens, if `args.token_batches` says so; else TRL's own, untouched."""

    accelerator: Any
    beta: float
    # On the class, for trainers made without __init__, as in TRL's own tests.
    _schedule: tuple[list[Batch], ...] = ()
    _due: list[Batch] | None = None
    _calls_in_step = 0
    _layout_found: tuple[Layout | None] | None = None
    _step_metrics: StepMetrics | None = None
    _kl_beta = 0.0

    def train(self, *args: Any, **kwargs: Any) -> Any:
        self._schedule, self._calls_in_step = (), 0  # what a run that was stopped within a step may have left
        return super().train(*args, **kwargs)

    # --------------------------------------------------------------------------------------------- one call of the loop

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        if not setting(self.args, "token_batches"):
            return super().training_step(model, inputs, num_items_in_batch)
        began = time.perf_counter()
        # As Trainer.training_step begins (transformers 5.23, line 2075): generation is done in training mode.
        model.train()
        if callable(getattr(self.optimizer, "train", None)):
            self.optimizer.train()
        self._prepare_inputs(inputs)  # generates if that is due
        self._log_prob_rows.forget()
        self._due = self._next_due()
        self._current_train_step_time += time.perf_counter() - began  # TRL 1.16, line 1514: its step_time
        try:
            if self._due:
                loss: torch.Tensor = super().training_step(model, inputs, num_items_in_batch)
                return loss
            self._step += 1  # all that TRL's would have changed
            return torch.zeros((), device=self.accelerator.device)
        finally:
            self._due = None
            self._calls_in_step = 0 if self.accelerator.sync_gradients else self._calls_in_step + 1

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        if self._due is not None and self.model.training:
            return self._due
        return super()._prepare_inputs(generation_batch)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        if not isinstance(inputs, list):
            loss: torch.Tensor = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            return loss
        *first, last = inputs
        total = torch.zeros((), device=self.accelerator.device)
        for batch in first:
            with self._before_the_last(model):
                loss = self._compute_loss(model, batch)
                self.accelerator.backward(loss, **self._backward_options())
            total += loss.detach()
        return self._compute_loss(model, last) + total

    @contextlib.contextmanager
    def _before_the_last(self, model: Any) -> Iterator[None]:
        """Inside, gradients are added up and neither reduced nor stepped with."""
        state, last = self.accelerator.gradient_state, self.accelerator.sync_gradients
        deepspeed = self.accelerator.distributed_type == DistributedType.DEEPSPEED  # which looks at the state alone
        state._set_sync_gradients(False)
        try:
            with contextlib.nullcontext() if deepspeed else self.accelerator.no_sync(model=model):
                yield
        finally:
            state._set_sync_gradients(last)

    def _backward_options(self) -> dict[str, Any]:
        """As Trainer.training_step has them (transformers 5.23, line 2124)."""
        return {"scale_wrt_gas": False} if self.accelerator.distributed_type == DistributedType.DEEPSPEED else {}

    # ---------------------------------------------------------------------------------------------------- micro-batches

    def _next_due(self) -> list[Batch]:
        """The micro-batches of this call; makes those of the whole optimizer step in its first."""
        if not self._schedule:
            # TRL 1.16, line 1541: an item of `_buffered_inputs` a call, `steps_per_generation` of them a generation.
            place = self._step % self.args.steps_per_generation
            calls = min(
                self.current_gradient_accumulation_steps - self._calls_in_step,
                self.args.steps_per_generation - place,
            )
            self._schedule = _over_calls(self._micro_batches_of_step(place, calls), calls)
        due, *rest = self._schedule
        self._schedule = tuple(rest)
        return due

    def _micro_batches_of_step(self, place: int, calls: int) -> list[Batch]:
        """Made once a generation, also where TRL trains on it several times (`num_iterations`)."""
        generation = self._buffered_inputs

        def make() -> tuple[list[Batch], dict[str, float]]:
            return self._micro_batches(generation[place : place + calls])

        again = self.num_iterations > 1
        batches, metrics = self._steps.get(generation, (place, calls), make) if again else make()
        for name, value in metrics.items():
            self._metrics["train"][name].append(value)
        return batches

    @functools.cached_property
    def _steps(self) -> Memo:
        return Memo()

    def _micro_batches(self, batches: list[Batch]) -> tuple[list[Batch], dict[str, float]]:
        """What the optimizer step runs: TRL's batches as they are, trimmed, or regrouped; and what to log of it."""
        layout = self._layout
        if layout is None:
            return batches, {}
        reason = reason_to_keep_micro_batches(self)
        if reason:
            logger.warning_once(f"micro-batches stay TRL's and are only trimmed, since {reason}")
            return [trimmed(batch, self.pad_to_multiple_of) for batch in batches], {}
        step_rows = StepRows.of(batches, self._ranks)
        if step_rows is None:
            logger.warning_once("a batch with images, an empty prompt or an advantage a token goes TRL's way")
            return batches, {}
        reason = reason_to_keep_rows(self, batches[0], bool(self._kl_beta))
        if reason:
            logger.warning_once(f"rows without advantage are trained all the same, since {reason}")
        members = step_rows.table.members(prune=reason is None)
        budget = self._budget(self.args.per_device_train_batch_size, step_rows.table)
        plan = make_plan(step_rows.table.rows, members, self._ranks.count, budget, layout)
        micro_batches = step_rows.micro_batches(plan, self._ranks, self.pad_to_multiple_of)
        return micro_batches, _plan_metrics(step_rows.table, plan, len(members), layout)

    def _budget(self, rows: int, table: Table) -> int:
        return setting(self.args, "max_tokens_per_micro_batch") or rows * table.width

    @property
    def _ranks(self) -> Ranks:
        accelerator = self.accelerator
        return Ranks(accelerator.process_index, accelerator.num_processes, accelerator.gather, accelerator.device)

    # ------------------------------------------------------------------------------------------------------------- loss

    def _compute_loss(self, model: Any, inputs: Batch) -> torch.Tensor:
        weight, stats = inputs.get(ROW_WEIGHT, 1.0), inputs.get(MICRO_BATCH_STATS)
        if weight != 1.0 and self.loss_type in ROW_MEAN_LOSSES:
            inputs = {**inputs, "advantages": inputs["advantages"] * weight}
        with self._weighed_kl(weight), self._uneven(stats):
            return super()._compute_loss(model, inputs)

    @contextlib.contextmanager
    def _weighed_kl(self, weight: float) -> Iterator[None]:
        """Inside, the KL term weighs as the rows do: every loss of TRL's is linear in advantages and beta."""
        beta = self.beta
        if self.loss_type in ROW_MEAN_LOSSES:
            self.beta = beta * weight
        try:
            yield
        finally:
            self.beta = beta

    @contextlib.contextmanager
    def _uneven(self, stats: MicroBatchStats | None) -> Iterator[None]:
        """Inside, micro-batches may differ in size, over ranks and from one another, and metrics stay means."""
        if stats is None:
            yield
            return
        if self._step_metrics is None:
            self._step_metrics = StepMetrics()
        accelerator, sequences = self.accelerator, self.importance_sampling_level == "sequence"
        self.accelerator = UnevenRows(accelerator, stats.most_rows) if accelerator.num_processes > 1 else accelerator
        try:
            with self._step_metrics.collected(self._metrics["train"], stats, sequences):
                yield
        finally:
            self.accelerator = accelerator

    # --------------------------------------------------------------------------------------------------------- forwards

    @property
    def _layout(self) -> Layout | None:
        """How rows go through the model; found out on first use, by all ranks at once."""
        if self._layout_found is None:
            weights = next(self.model.parameters())
            layout = find_layout(
                self.model,
                self.model.config.get_text_config(),
                self._trls_log_probs,
                self.accelerator.autocast,
                self._ranks,
                half=self.accelerator.mixed_precision != "no" or weights.dtype in (torch.float16, torch.bfloat16),
                packs=setting(self.args, "padding_free"),
                shares=setting(self.args, "shared_prefix"),
            )
            self._layout_found = (layout,)
        return self._layout_found[0]

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
        if layout is not None and not torch.is_grad_enabled() and not compute_entropy and self._ranks.all(known):
            return self._log_probs(model, input_ids, attention_mask, logits_to_keep, batch_size), None, None
        if isinstance(layout, PackedLayout) and torch.is_grad_enabled() and known:
            found = packed_forward(model, input_ids, attention_mask, logits_to_keep, layout, self.accelerator.autocast)
            return *found, None
        return super()._get_per_token_logps_and_entropies(
            model,
            input_ids,
            attention_mask,
            logits_to_keep,
            batch_size,
            compute_entropy,
            compute_aux_loss,
            **multimodal,
        )

    def _log_probs(
        self, model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, width: int, batch_size: int | None
    ) -> torch.Tensor:
        """Log-probabilities without gradient, shape (N, width): each row computed on whichever rank has time for it."""

        def make() -> tuple[LogProbRows | None, torch.Tensor]:
            rows = LogProbRows.of(input_ids, attention_mask, width, self._ranks, self._log_prob_plan(batch_size))
            return rows, attention_mask  # which is kept so that its id stays its own

        key = (id(attention_mask), width, batch_size)
        rows, _ = self._log_prob_rows.get(input_ids, key, make)  # the same for old and for reference log-probabilities
        if rows is None:
            whole = super()._get_per_token_logps_and_entropies(model, input_ids, attention_mask, width, batch_size)
            return whole[0]
        return rows.returned([self._log_probs_of(model, part) for part in rows.parts(self.pad_to_multiple_of)])

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

    def _log_probs_of(self, model: Any, part: Batch) -> torch.Tensor:
        """Of one forward's rows, as wide as their completions."""
        ids = torch.cat([part["prompt_ids"], part["completion_ids"]], dim=1)
        mask = torch.cat([part["prompt_mask"], part["completion_mask"]], dim=1)
        width = part["completion_ids"].shape[1]
        if isinstance(self._layout, PackedLayout):
            return packed_forward(model, ids, mask, width, self._layout, self.accelerator.autocast)[0]
        values: torch.Tensor = super()._get_per_token_logps_and_entropies(model, ids, mask, width)[0]
        return values


def _plan_metrics(table: Table, plan: Plan, members: int, layout: Layout) -> dict[str, float]:
    return {
        "batches/micro_batches": len(plan[0]),
        "batches/rows": members,
        "batches/rows_without_signal": len(table.rows.rank_R) - members,
        "batches/tokens": sum(layout.tokens(table.rows, batch) for own in plan for batch in own),
        "batches/tokens_trl": table.width * len(table.rows.rank_R),
    }


def _over_calls(batches: list[Batch], calls: int) -> tuple[list[Batch], ...]:
    """Micro-batches for each call: none in the first calls where they are fewer, else about as many in each."""
    if len(batches) <= calls:
        return tuple([[] for _ in range(calls - len(batches))] + [[batch] for batch in batches])
    each, more = divmod(len(batches), calls)
    ends = [number * each + min(number, more) for number in range(calls + 1)]
    return tuple(batches[start:end] for start, end in itertools.pairwise(ends))
