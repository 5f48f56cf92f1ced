"""`ScoreAheadTrainer`: when a batch is generated, scored and trained on; with `score_ahead`, one batch early.

    generate 0, send | generate 1, send | take scores 0, train on 0 | generate 2, send | take scores 1, train on 1 | …

A generation then costs the longer of scoring and of the trainer's own work, not their sum. Generation k is sampled
before the optimizer steps of generation k - 1 and trained on after them: as many updates late as a generation has
(steps_per_generation × num_iterations / gradient_accumulation_steps, which is one by default). Its ratio is taken
against the log-probabilities of the policy that sampled it, as the clipped objective has it (eq. 3 of arXiv:2402.03300,
π_old). The first generation of each epoch is not ahead: it is generated when it is due, since the next epoch's rows are
not known before, and its scores are waited for.

TRL generates and computes advantages in one method, which asks for rewards in between. That method is run twice: first
until it asks for rewards, while its results are recorded; and again when the scores are due, with the record played
back.

Knows nothing of the service: a subclass sends (`_send`) and takes (`_calculate_rewards`).
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import trl

from grpo_plugin.config import setting
from grpo_plugin.rewards.collect import Pending
from grpo_plugin.rewards.groups import GroupLayout
from grpo_plugin.trainer.group_signal import GroupSignalTrainer
from reward_server.types import Score


class ScoresNotDueError(Exception):
    """Ends the first run of TRL's method where it asks for rewards. Never leaves the trainer."""


@dataclass(slots=True)
class Generation:
    """A generation that is being scored: its rows, and the results to play back when the scores arrive."""

    inputs: list[dict[str, Any]]
    generated: Any = None
    log_probs: list[Any] = field(default_factory=list)  # the old policy's, then the reference's, as TRL asks for them
    pending: tuple[Pending, GroupLayout] | None = None


class Batch(list[dict[str, Any]]):
    """The rows of a generation, with those of the one after it, if the epoch has one."""

    def __init__(self, rows: list[dict[str, Any]], upcoming: list[dict[str, Any]] | None):
        super().__init__(rows)
        self.rows = rows
        self.upcoming = upcoming


class Lookahead(Iterator[Batch]):
    """An epoch's batches, each with the one that is `distance` later: that is where the next generation begins."""

    def __init__(self, batches: Iterator[Any], distance: int):
        self.source = batches
        self._distance = distance
        self._read: deque[Any] = deque()

    def __next__(self) -> Batch:
        while len(self._read) <= self._distance:
            try:
                self._read.append(next(self.source))
            except StopIteration:
                break
        if not self._read:
            raise StopIteration
        upcoming = self._read[self._distance] if len(self._read) > self._distance else None
        return Batch(self._read.popleft(), upcoming)


class ScoreAheadTrainer(GroupSignalTrainer):
    """TRL's trainer, which sends what it generated at once, and may generate a batch ahead."""

    num_iterations: int
    _pending: tuple[Pending, GroupLayout] | None = None  # of the batch that is being generated or ended
    _inputs: list[dict[str, Any]] = []  # noqa: RUF012 - its rows; never changed in place
    _failures_R: Sequence[Mapping[str, Score]] = ()  # its failed scores, a row each; empty where nobody knows of any
    _begun: Generation | None = None
    _recorded: Generation | None = None
    _replayed: Generation | None = None
    _log_probs_left: Iterator[Any]
    _lookahead: Lookahead | None = None

    def _send(self, prompts: list[Any], generated: Any) -> tuple[Pending, GroupLayout] | None:
        """Sends what `_generate` returned to be scored."""
        raise NotImplementedError

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        if setting(self.args, "score_ahead") and self.model.training:
            return self._score_ahead(inputs)
        return self._generate_and_score(inputs)

    def _generate_and_score(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self._inputs, self._dropped_R, self._failures_R = inputs, None, ()
        try:
            batch: dict[str, Any] = super()._generate_and_score_completions(inputs)
        finally:
            self._inputs = []
            if self._pending is not None:
                self._pending[0].cancel()
                self._pending = None
        if self._dropped_R is not None:
            self._drop(batch, self._dropped_R)
        return batch

    def _generate(self, prompts: list[Any]) -> Any:
        # Leans on TRL 1.16 (grpo_trainer.py:2193): called once a batch by `_generate_and_score_completions`, returning
        # prompt_ids, completion_ids, tool_mask, completions, logprobs, extra_fields, images, tool_images.
        if self._replayed is not None:
            return self._replayed.generated
        generated = super()._generate(prompts)
        self._pending = self._send(prompts, generated)
        if self._recorded is not None:
            self._recorded.generated = generated
        return generated

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> Any:
        if self._recorded is not None:
            raise ScoresNotDueError
        return super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().train(*args, **kwargs)
        finally:
            self._forget(self._begun)
            self._begun = self._lookahead = None

    # ------------------------------------------------------------------------------------------------------ score_ahead

    def _score_ahead(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """Begins the next generation, then ends this one, begun earlier unless it is the first of its epoch."""
        generation, self._begun = self._begun, None
        if generation is None or generation.inputs is not getattr(inputs, "rows", inputs):
            self._forget(generation)
            generation = self._begin(inputs)
        self._carry_on(generation)
        upcoming = getattr(inputs, "upcoming", None)
        if upcoming is not None and self._will_train_next():
            self._begun = self._begin(upcoming)
        return self._end(generation)

    def _begin(self, inputs: list[dict[str, Any]]) -> Generation:
        """Generates, computes log-probabilities and sends the groups: all that comes before rewards."""
        self._recorded = generation = Generation(getattr(inputs, "rows", inputs))
        self._inputs = inputs
        try:
            with self._with_old_log_probs():
                super()._generate_and_score_completions(inputs)
        except ScoresNotDueError:
            generation.pending, self._pending = self._pending, None
            return generation
        finally:
            self._recorded, self._inputs = None, []
        raise AssertionError(f"TRL {trl.__version__} asked for no rewards")

    def _end(self, generation: Generation) -> dict[str, Any]:
        """Takes the scores and computes advantages: all that comes after."""
        self._replayed, self._log_probs_left = generation, iter(generation.log_probs)
        self._pending = generation.pending
        try:
            with self._with_old_log_probs():
                return self._generate_and_score(generation.inputs)
        finally:
            self._replayed = None

    def _carry_on(self, generation: Generation) -> None:
        """Whatever a subclass begins for this generation before the next one is generated: it is scored meanwhile."""

    def _forget(self, generation: Generation | None) -> None:
        if generation is not None and generation.pending is not None:
            generation.pending[0].cancel()

    def _will_train_next(self) -> bool:
        """Whether the generation after this one begins before the last optimizer step is done."""
        return self.state.global_step + self._updates_until_next < self.state.max_steps

    @property
    def _updates_until_next(self) -> int:
        """The optimizer steps between the begin of this generation's training and that of the next one's."""
        calls = self._step % self.args.gradient_accumulation_steps + self._calls_in_generation
        return calls // self.args.gradient_accumulation_steps

    @property
    def _calls_in_generation(self) -> int:
        return self.args.steps_per_generation * self.num_iterations

    @contextlib.contextmanager
    def _with_old_log_probs(self) -> Iterator[None]:
        """Inside, TRL computes the log-probabilities of the policy that samples, since it is not the one updated.

        Leans on TRL 1.16 (grpo_trainer.py:2582): it does so if a generation lasts longer than an optimizer step.
        """
        iterations, self.num_iterations = self.num_iterations, self.args.gradient_accumulation_steps + 1
        try:
            yield
        finally:
            self.num_iterations = iterations

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        if self._replayed is not None:
            return next(self._log_probs_left)
        found = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        if self._recorded is not None:
            self._recorded.log_probs.append(found)
        return found

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        # Transformers 5.23 (trainer.py:2281): called for each optimizer step with the one iterator of the epoch.
        if setting(self.args, "score_ahead"):
            if self._lookahead is None or self._lookahead.source is not epoch_iterator:
                self._lookahead = Lookahead(epoch_iterator, self._calls_in_generation)
            epoch_iterator = self._lookahead
        return super().get_batch_samples(epoch_iterator, num_batches, device)
