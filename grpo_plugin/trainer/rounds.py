"""`RoundsTrainer`: parts of TRL's generating and scoring, run on rows of our own.

TRL generates, computes log-probabilities, asks for rewards and makes advantages in one method, for the batch of its
data loader. Here that method is ended where a part is done, or played back what is known already:

    _generate_rows       generates for any rows and sends them to be scored
    _score_rows          takes their scores
    _note_old_log_probs  the log-probabilities of the policy that sampled, before it is updated
    _train_on            everything from the log-probabilities on, for rows that are generated and scored

Owns these four. Who decides which rows, and why, is a subclass.

Legend: N rows on this rank, R rows of the global batch, S scorers, T tokens.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import trl

from grpo_plugin.sampling.refill import Batch, Round
from grpo_plugin.sampling.round_metrics import grown
from grpo_plugin.sampling.sampled import Sampled, generated_of, rows_of, with_old_log_probs
from grpo_plugin.trainer.score_ahead import ScoreAheadTrainer


class PartDoneError(Exception):
    """Ends TRL's method with what it has made. Never leaves the trainer."""

    def __init__(self, made: Any):
        self.made = made


class RoundsTrainer(ScoreAheadTrainer):
    """TRL's trainer, whose batches may be made of rows that were generated and scored apart."""

    _ends_after: str | None = None  # the method of TRL's after which it is ended
    _played: Sequence[Sampled] | None = None  # what `_generate` returns instead of generating
    _old_rows_N: Sequence[Sampled] | None = None  # whose old log-probabilities are known

    def _generate(self, prompts: list[Any]) -> Any:
        if self._played is not None:
            return generated_of(self._played)
        generated = super()._generate(prompts)
        if self._ends_after == "_generate":
            pending, self._pending = self._pending, None
            raise PartDoneError((prompts, generated, pending))
        return generated

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        found = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        if self._ends_after == "_get_per_token_logps_and_entropies":
            raise PartDoneError(found[0])
        old_rows_N, self._old_rows_N = self._old_rows_N, None  # TRL asks for the old policy's first
        return found if old_rows_N is None else (with_old_log_probs(found[0], old_rows_N), *found[1:])

    # -----------------------------------------------------------------------------------------------------------------

    def _generate_rows(self, rows_N: list[dict[str, Any]], groups: int, indices_B: Sequence[int] = ()) -> Round:
        """Generates for rows of this rank, as many on each, and sends their groups, `groups` on all ranks."""
        with self._metrics_apart() as noted:
            prompts, generated, pending = self._until("_generate", rows_N)
        sampled_N = rows_of(rows_N, prompts, generated)
        return Round(sampled_N, indices_B, self.state.global_step, groups, pending, noted)

    def _score_rows(self, round_: Round) -> None:
        """Takes the scores of a round; every rank has them then."""
        rows_N = round_.rows_N
        prompts, completions = [row.prompt for row in rows_N], [row.completion for row in rows_N]
        self._pending, self._dropped_R, self._failures_R = round_.pending, None, ()
        ids, columns = [row.completion_ids for row in rows_N], [row.columns() for row in rows_N]
        try:
            with self._metrics_apart() as noted:
                round_.scores_RS = self._calculate_rewards(columns, prompts, completions, ids)
        finally:
            self._pending = None
            round_.cancel()
        round_.noted |= noted
        round_.dropped_R, round_.failures_R = self._dropped_R, self._failures_R
        self._keep_extra_logs(rows_N)

    def _note_old_log_probs(self, rows_N: Sequence[Sampled]) -> None:
        """Computes the log-probabilities by the policy as it is now; as many rows on each rank."""
        self._played = rows_N
        try:
            with self._with_old_log_probs():
                found_NT = self._until("_get_per_token_logps_and_entropies", [row.row for row in rows_N])
        finally:
            self._played = None
        for row, log_probs_T in zip(rows_N, found_NT.cpu(), strict=True):
            row.old_log_probs = log_probs_T[: len(row.completion_ids)].clone()

    def _train_on(self, batch: Batch) -> dict[str, Any]:
        """TRL's batch of these rows."""
        self._played, self._old_rows_N = batch.rows_N, batch.rows_N if batch.has_old else None
        try:
            with self._with_old_log_probs() if batch.has_old else contextlib.nullcontext(), self._playing_back(batch):
                return super()._generate_and_score([row.row for row in batch.rows_N])
        finally:
            self._played = self._old_rows_N = None

    # ---------------------------------------------------------------------------------------------------------- details

    def _until(self, method: str, rows_N: list[dict[str, Any]]) -> Any:
        """What TRL has made of the rows when `method` returns."""
        self._ends_after = method
        try:
            super()._generate_and_score(rows_N)
        except PartDoneError as done:
            return done.made
        finally:
            self._ends_after = None
        raise AssertionError(f"TRL {trl.__version__} did not call {method}")

    @contextlib.contextmanager
    def _playing_back(self, batch: Batch) -> Iterator[None]:
        """Inside, rewards are those that are known, also for a subclass that has its own way to them."""

        def known(*_: Any) -> torch.Tensor:
            self._dropped_R, self._failures_R = batch.dropped_R, batch.failures_R
            names = dict.fromkeys(name for row in batch.rows_N for name in row.logged)
            for name in names:
                self._pending_extra_logs[name].extend(row.logged.get(name) for row in batch.rows_N)
            return batch.scores_RS

        before = vars(self).get("_calculate_rewards")
        self.__dict__["_calculate_rewards"] = known
        try:
            yield
        finally:
            del self._calculate_rewards
            if before is not None:
                self.__dict__["_calculate_rewards"] = before

    @contextlib.contextmanager
    def _metrics_apart(self) -> Iterator[dict[str, list[float]]]:
        """Inside, what is logged goes into the dict that is yielded, and not into TRL's metrics."""
        metrics, noted = self._metrics["train"], dict[str, list[float]]()
        before = {name: len(values) for name, values in metrics.items()}
        try:
            yield noted
        finally:
            noted.update(grown(before, metrics))

    def _keep_extra_logs(self, rows_N: Sequence[Sampled]) -> None:
        """Moves what reward functions logged for the table of completions to the rows: not all of them are shown."""
        for name, values in self._pending_extra_logs.items():
            for row, value in zip(rows_N, values, strict=False):
                row.logged[name] = value
        self._pending_extra_logs.clear()
