"""`TokenBatchTrainer`: TRL's GRPOTrainer, whose micro-batches are made of tokens instead of rows.

Short overrides around `super()`. `batching.plan` decides which rows go together, `batching.rows` makes micro-batches of
them, `batching.exactness` says when neither may happen. Knows nothing of rewards.

TRL's loop makes A calls for an optimizer step, each of which runs a micro-batch of B rows. This trainer takes all rows
of the step in the first call and plans micro-batches of tokens of them. The same A calls run those: where they are
fewer than A the first calls run none, where they are more a call runs several. The last call, in which gradients are
reduced and the optimizer steps, always runs at least one.

The step reads from the device once, when it is planned. The tensors of a micro-batch are made when the one before it
has been launched, so that a device that computes asynchronously hides that work.

Legend: N rows on this rank, R rows over all ranks, A gradient accumulation steps, B rows of TRL's micro-batch.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from accelerate.logging import get_logger
from accelerate.utils import DistributedType

from grpo_plugin.batching.auto_budget import AutoBudget
from grpo_plugin.batching.exactness import reason_to_keep_micro_batches, reason_to_keep_rows
from grpo_plugin.batching.forward import PACKING, with_packing
from grpo_plugin.batching.memo import Memo
from grpo_plugin.batching.metrics import StepMetrics, UnevenRows
from grpo_plugin.batching.packing import DeviceIndex
from grpo_plugin.batching.plan import Layout, MicroBatch, Plan, Rows, make_plan
from grpo_plugin.batching.prepared import Prepared
from grpo_plugin.batching.rows import MICRO_BATCH_STATS, MicroBatchStats, StepRows, trimmed
from grpo_plugin.batching.table import Table
from grpo_plugin.config import setting
from grpo_plugin.rewards.survivors import ROW_MEAN_LOSSES, ROW_WEIGHT
from grpo_plugin.trainer.log_probs import Batch, LogProbsTrainer

logger = get_logger(__name__)


class TokenBatchTrainer(LogProbsTrainer):
    """`trl.GRPOTrainer` with micro-batches of tokens, if `args.token_batches` says so; else TRL's own, untouched."""

    beta: float
    # On the class, for trainers made without __init__, as in TRL's own tests.
    _micro_batches: Prepared[Batch] = Prepared.of([])  # of the optimizer step, or its part that one generation holds
    _schedule: tuple[list[int], ...] = ()  # their numbers, for each call that is still to come
    _due: list[int] | None = None
    _calls_in_step = 0
    _step_metrics: StepMetrics | None = None
    _kl_beta = 0.0

    def train(self, *args: Any, **kwargs: Any) -> Any:
        # What a run that was stopped within a step may have left.
        self._micro_batches, self._schedule = Prepared.of([]), ()
        self._calls_in_step, self._step_metrics = 0, None
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
                self._launched(self._due[-1])
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
        for number in first:
            with self._before_the_last(model):
                loss = self._loss_of(model, number)
                self.accelerator.backward(loss, **self._backward_options())
            self._launched(number)
            total += loss.detach()
        return self._loss_of(model, last) + total

    def _loss_of(self, model: Any, number: int) -> torch.Tensor:
        batch = self._micro_batches[number]
        if self._measured_by is not None:
            self._measured_by.begin(first=number == 0)
        return self._compute_loss(model, batch)

    def _launched(self, number: int) -> None:
        """What is done while the device computes this micro-batch: the tensors of the next one are made."""
        if self._measured_by is not None:
            self._measured_by.end(_tokens(self._micro_batches[number]))
        self._micro_batches.prepare(number + 1)

    @property
    def _measured_by(self) -> AutoBudget | None:
        """None in the first optimizer step, at whose end the optimizer allocates its state."""
        return self._auto_budget if self.state.global_step else None

    @contextlib.contextmanager
    def _before_the_last(self, model: Any) -> Iterator[None]:
        """Inside, gradients are added up; they are not reduced over ranks, and the optimizer does not step."""
        state, last = self.accelerator.gradient_state, self.accelerator.sync_gradients
        state._set_sync_gradients(False)
        try:
            with self._without_reduction(model) if last else contextlib.nullcontext():
                yield
        finally:
            state._set_sync_gradients(last)

    def _without_reduction(self, model: Any) -> contextlib.AbstractContextManager[Any]:
        """What Trainer._run_epoch enters for every call but the last (transformers 5.23, line 1896)."""
        each = self.accelerator.gradient_state.plugin_kwargs.get("sync_each_batch", False)
        if each or self.accelerator.distributed_type == DistributedType.DEEPSPEED:  # which looks at `sync_gradients`
            return contextlib.nullcontext()
        context: contextlib.AbstractContextManager[Any] = self.accelerator.no_sync(model=model)
        return context

    def _backward_options(self) -> dict[str, Any]:
        """As Trainer.training_step has them (transformers 5.23, line 2124)."""
        return {"scale_wrt_gas": False} if self.accelerator.distributed_type == DistributedType.DEEPSPEED else {}

    # ---------------------------------------------------------------------------------------------------- micro-batches

    def _next_due(self) -> list[int]:
        """The micro-batches of this call; plans those of the whole optimizer step in its first."""
        if not self._schedule:
            # TRL 1.16, line 1541: an item of `_buffered_inputs` a call, `steps_per_generation` of them a generation.
            place = self._step % self.args.steps_per_generation
            calls = min(
                self.current_gradient_accumulation_steps - self._calls_in_step,
                self.args.steps_per_generation - place,
            )
            self._micro_batches = self._micro_batches_of_step(place, calls)
            self._schedule = _over_calls(len(self._micro_batches), calls)
        due, *rest = self._schedule
        self._schedule = tuple(rest)
        return due

    def _micro_batches_of_step(self, place: int, calls: int) -> Prepared[Batch]:
        """Made once a generation, also where TRL trains on it several times (`num_iterations`)."""
        generation = self._buffered_inputs

        def make() -> tuple[Prepared[Batch], dict[str, float]]:
            return self._made_of(generation[place : place + calls])

        again = self.num_iterations > 1
        batches, metrics = self._steps.get(generation, (place, calls), make) if again else make()
        for name, value in metrics.items():
            self._metrics["train"][name].append(value)
        return batches

    @functools.cached_property
    def _steps(self) -> Memo:
        return Memo()

    def _made_of(self, batches: list[Batch]) -> tuple[Prepared[Batch], dict[str, float]]:
        """What the optimizer step runs: TRL's batches as they are, trimmed, or regrouped; and what to log of it."""
        layout = self._layout
        if layout is None:
            return Prepared.of(batches), {}
        reason = reason_to_keep_micro_batches(self)
        if reason:
            logger.warning_once(f"micro-batches stay TRL's and are only trimmed, since {reason}")
            return self._trimmed(batches, layout), {}
        step_rows = StepRows.of(batches, self._ranks, self._sequence_ratios, self._most_tokens)
        if step_rows is None:
            logger.warning_once("a batch with images, an empty prompt or an advantage a token goes TRL's way")
            return Prepared.of(batches), {}
        reason = reason_to_keep_rows(self, batches[0], bool(self._kl_beta))
        if reason:
            logger.warning_once(f"rows without advantage are trained all the same, since {reason}")
        members = step_rows.table.members(prune=reason is None)
        budget = self._budget(self.args.per_device_train_batch_size, step_rows.table)
        plan = make_plan(step_rows.table.rows, members, self._ranks.count, budget, layout)
        micro_batches = step_rows.micro_batches(plan, self._ranks, self._multiple_of(step_rows.table.width))
        own, rows = plan[self._ranks.rank], step_rows.table.rows
        metrics = _plan_metrics(step_rows.table, plan, len(members), layout)
        return _packed(micro_batches, own, rows, layout), {**metrics, "batches/budget": budget}

    def _trimmed(self, batches: list[Batch], layout: Layout) -> Prepared[Batch]:
        widest = batches[0]["prompt_ids"].shape[1] + batches[0]["completion_ids"].shape[1]
        found, rows = trimmed(batches, self._multiple_of(widest), self._sequence_ratios)
        if rows is None:
            return Prepared.of(found)
        each = len(rows.rank_R) // len(found)
        own = [tuple(range(number * each, (number + 1) * each)) for number in range(len(found))]
        return _packed(Prepared.of(found), own, rows, layout)

    @property
    def _sequence_ratios(self) -> bool:
        """Whether `importance_sampling_ratio` has a value a completion (TRL 1.16, line 2667)."""
        return self.vllm_importance_sampling_mode in ("sequence_mask", "sequence_truncate")

    # ------------------------------------------------------------------------------------------------------------- loss

    def _compute_loss(self, model: Any, inputs: Batch) -> torch.Tensor:
        weight, stats = inputs.get(ROW_WEIGHT, 1.0), inputs.get(MICRO_BATCH_STATS)
        if weight != 1.0 and self.loss_type in ROW_MEAN_LOSSES:
            inputs = {**inputs, "advantages": inputs["advantages"] * weight}
        self._packing = inputs.get(PACKING)
        try:
            with self._weighed_kl(weight), self._uneven(stats):
                return super()._compute_loss(model, inputs)
        finally:
            self._packing = None

    @contextlib.contextmanager
    def _weighed_kl(self, weight: float) -> Iterator[None]:
        """Inside, the KL term weighs as the rows do: every loss of TRL's is linear in advantages and beta.

        TRL logs the KL term, and so gathers over ranks, only where beta is not 0. A filler on one rank has weight 0
        where other ranks have rows: its beta stays, and its mask, which is all 0, leaves the term out of the loss.
        """
        beta = self.beta
        if self.loss_type in ROW_MEAN_LOSSES and weight:
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


def _plan_metrics(table: Table, plan: Plan, members: int, layout: Layout) -> dict[str, float]:
    return {
        "batches/micro_batches": len(plan[0]),
        "batches/rows": members,
        "batches/rows_without_signal": len(table.rows.rank_R) - members,
        "batches/tokens": sum(layout.tokens(table.rows, batch) for own in plan for batch in own),
        "batches/tokens_trl": table.width * len(table.rows.rank_R),
    }


def _packed(micro_batches: Prepared[Batch], own: Sequence[MicroBatch], rows: Rows, layout: Layout) -> Prepared[Batch]:
    """With where the tokens of each go in a packed forward."""
    return Prepared(len(own), lambda number: with_packing([micro_batches[number]], [own[number]], rows, layout)[0])


def _tokens(batch: Batch) -> int:
    """That a forward of this micro-batch computes."""
    packing: DeviceIndex | None = batch.get(PACKING)
    if packing is not None:
        return sum(packing.index.lengths)
    return sum(int(batch[name].numel()) for name in ("prompt_ids", "completion_ids"))


def _over_calls(count: int, calls: int) -> tuple[list[int], ...]:
    """The numbers of micro-batches for each call: none in the first calls where they are fewer, else about as many."""
    if count <= calls:
        return tuple([[] for _ in range(calls - count)] + [[number] for number in range(count)])
    each, more = divmod(count, calls)
    ends = [number * each + min(number, more) for number in range(calls + 1)]
    return tuple(list(range(start, end)) for start, end in itertools.pairwise(ends))
