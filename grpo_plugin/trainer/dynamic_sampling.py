"""`DynamicSamplingTrainer`: a batch is filled with groups that carry signal, if `dynamic_sampling` asks for it.

The dynamic sampling of DAPO (arXiv:2503.14476, section 3.2). Groups that `group_filter` does not keep are replaced by
groups of other prompts, in at most `max_sampling_rounds` rounds; what is generated beyond need is kept for the next
batch. `sampling.refill` decides, on scores that all ranks hold, so that all ranks decide alike:

    TRL's batch ─ generate, send ─┐          while a round is scored, the next is generated if the running share of
    round 1     ─ generate, send ─┤ scores   kept groups says that it will be needed
    round 2     ─ generate, send ─┘   │
                                      └► kept groups stay where they are, the holes are filled; TRL computes
                                         log-probabilities, denominators and advantages on what came of it

With `score_ahead` TRL's batch is sent a step earlier, and its rounds are generated before the batch after it.

Owns the order of events and the moves of rows between ranks. `rounds` generates and scores. Knows nothing of the
service.

Legend: N rows on this rank, R rows of the global batch, B groups of it, G completions of a group, S scorers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate.logging import get_logger
from accelerate.utils import gather_object
from torch.utils.data import IterableDataset

from grpo_plugin.config import setting
from grpo_plugin.sampling import storage
from grpo_plugin.sampling.group_filters import ScoredGroups, filter_of, kept_by
from grpo_plugin.sampling.prompt_stream import PromptStream
from grpo_plugin.sampling.refill import Filling, Round, filled, sizes, spares_of, unit_of
from grpo_plugin.sampling.round_metrics import sampling_metrics
from grpo_plugin.sampling.sampled import Sampled
from grpo_plugin.sampling.state import Sampling
from grpo_plugin.sampling.storage import kept_in_checkpoints
from grpo_plugin.trainer.rounds import RoundsTrainer
from grpo_plugin.trainer.score_ahead import Generation
from reward_server.errors import ConfigError

logger = get_logger(__name__)


@dataclass(slots=True)
class BegunFilling(Generation):
    """A generation whose batch is being filled."""

    filling: Filling | None = None


class DynamicSamplingTrainer(RoundsTrainer):
    """TRL's trainer, which replaces groups without signal before it trains."""

    train_dataset: Any
    reward_func_names: list[str]
    _sampling: Sampling | None = None
    _filling_due: Filling | None = None  # with score_ahead: the batch that is being ended

    # -----------------------------------------------------------------------------------------------------------------

    def train(self, *args: Any, **kwargs: Any) -> Any:
        self._sampling = self._filling_due = None
        if not setting(self.args, "dynamic_sampling"):
            return super().train(*args, **kwargs)
        self._sampling = self._make_sampling()
        try:
            with kept_in_checkpoints(self, storage.SAMPLING, self._sampling):
                return super().train(*args, **kwargs)
        finally:
            self._sampling.cancel()

    def _make_sampling(self) -> Sampling:
        if isinstance(self.train_dataset, IterableDataset):
            raise ConfigError(
                "dynamic_sampling takes prompts from elsewhere in the training data, and a stream has only the next "
                "one: load the data without streaming, or set dynamic_sampling to false"
            )
        name, band = setting(self.args, "group_filter"), setting(self.args, "pass_rate")
        scorer, names = setting(self.args, "pass_rate_scorer"), self.reward_func_names
        if name == "pass_rate" and scorer not in (names if len(names) > 1 else [None, *names]):
            raise ConfigError(
                f"group_filter 'pass_rate' needs to know whose scores are passes: set pass_rate_scorer to one of "
                f"{', '.join(names)}, not {scorer!r}"
            )
        return Sampling(PromptStream(len(self.train_dataset), self.args.seed), filter_of(name, band, scorer))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if self._sampling is not None and checkpoint:
            state = storage.read_on_main(Path(checkpoint), storage.SAMPLING)
            if state is not None:
                self._sampling.load(state)

    # -----------------------------------------------------------------------------------------------------------------

    def _generate_and_score(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        if self._sampling is None or not self.model.training:
            return super()._generate_and_score(inputs)
        filling, self._filling_due = self._filling_due or self._begin_filling(inputs, self._sampling), None
        with filling.cancelled_on_error():
            self._fill(filling, self._sampling)
        batch = filled(filling, self.accelerator.process_index, self.num_generations)
        inputs[:] = [row.row for row in batch.rows_N]  # for all who look at what is trained on
        self._log_sampling(filling)
        self._keep_surplus(filling, self._sampling)
        return self._train_on(batch)

    def _begin_filling(self, inputs: list[dict[str, Any]], sampling: Sampling) -> Filling:
        """Generates for TRL's batch; before any share is known, for as many prompts more as `oversample` says."""
        groups = len(inputs) * self.accelerator.num_processes // self.num_generations
        filling = Filling(groups, list(inputs[0]), self._generate_rows(inputs, groups))
        more = 0.0 if sampling.share.value is not None else (setting(self.args, "oversample") - 1) * groups
        more = min(round(more), sampling.stream.size)
        with filling.cancelled_on_error():
            for size in sizes(more, groups, self._unit):
                self._generate_more(filling, sampling, size)
        return filling

    def _fill(self, filling: Filling, sampling: Sampling) -> None:
        """Generates rounds and takes their scores until enough groups are kept; the rest is not waited for."""
        sampling.use_surplus(filling, self.state.global_step, setting(self.args, "max_group_age"))
        self._generate_round(filling, sampling)
        while filling.in_flight and not filling.is_full:
            self._take(filling, sampling)
            self._generate_round(filling, sampling)

    def _generate_round(self, filling: Filling, sampling: Sampling) -> None:
        """What will be needed, if it may be asked for; in parts of a batch, which is what memory is sized for."""
        wanted = self._wanted(filling, sampling)
        if not wanted or filling.rounds >= setting(self.args, "max_sampling_rounds"):
            return
        filling.rounds += 1
        for size in sizes(wanted, filling.groups, self._unit):
            self._generate_more(filling, sampling, size)

    def _wanted(self, filling: Filling, sampling: Sampling) -> int:
        """How many groups to ask for; a batch asks for no more prompts than there are."""
        wanted = filling.wanted(sampling.share.value, setting(self.args, "oversample"))
        return max(0, min(wanted, sampling.stream.size - filling.asked))

    def _generate_more(self, filling: Filling, sampling: Sampling, groups: int) -> None:
        """Generates for the next prompts of the stream; each rank for as many rows."""
        indices_B, size = sampling.stream.take(groups), self.num_generations
        rows = groups * size // self.accelerator.num_processes
        first = self.accelerator.process_index * rows
        own_N = [indices_B[row // size] for row in range(first, first + rows)]
        found = {index: self.train_dataset[index] for index in dict.fromkeys(own_N)}
        columns = filling.columns  # the loader may have left some out
        rows_N = [{name: found[index][name] for name in columns if name in found[index]} for index in own_N]
        filling.add(self._generate_rows(rows_N, groups, indices_B))

    def _take(self, filling: Filling, sampling: Sampling) -> None:
        """Takes the scores of the oldest round in flight, and its groups that are worth training on."""
        round_ = filling.in_flight.popleft()
        self._score_rows(round_)
        scored = self._scored_groups(round_)
        round_.rewards_BG, round_.kept_B = scored.rewards_BG, kept_by(sampling.filter, scored)
        sampling.share.add(int(round_.kept_B.sum()), round_.groups)
        if round_ is not filling.main:
            filling.spares += spares_of(round_, self.accelerator.process_index, self.num_generations, gather_object)
        filling.done.append(round_)
        self._note_scored(round_)

    def _note_scored(self, round_: Round) -> None:
        """For a subclass that keeps a history of all prompts, also of those that are not trained on."""

    def _scored_groups(self, round_: Round) -> ScoredGroups:
        assert round_.scores_RS is not None
        scores_BGS = round_.scores_RS.cpu().view(round_.groups, self.num_generations, -1)
        per_scorer = self.multi_objective_aggregation == "normalize_then_sum"
        return ScoredGroups(scores_BGS, self.reward_weights.cpu(), self.reward_func_names, per_scorer)

    def _log_sampling(self, filling: Filling) -> None:
        for name, value in sampling_metrics(filling, self.num_generations, self.state.global_step).items():
            self._metrics["train"][name].append(value)
        if filling.have < filling.groups:
            logger.warning_once(
                f"after {filling.rounds} rounds group_filter has kept fewer groups than the {filling.groups} of a "
                "batch: such a step trains on what there is, and sampling/unfilled counts what is missing. Raise "
                "max_sampling_rounds, or take other prompts"
            )

    @property
    def _unit(self) -> int:
        return unit_of(self.num_generations, self.accelerator.num_processes)

    # -----------------------------------------------------------------------------------------------------------------

    def _keep_surplus(self, filling: Filling, sampling: Sampling) -> None:
        """Keeps what is left for the next batch, with its log-probabilities by the policy that sampled it."""
        sampling.surplus, sampling.in_flight = filling.surplus(), filling.take_unneeded()
        sampling.drop_old(self.state.global_step + self._updates_until_next, setting(self.args, "max_group_age"))
        if not self._will_train_next():
            return
        new = [row for spare in sampling.surplus for row in spare.rows_G if row.old_log_probs is None]
        if new:
            self._note_old_log_probs_together(new)
        for round_ in sampling.in_flight:
            if round_.rows_N[0].old_log_probs is None:
                self._note_old_log_probs(round_.rows_N)

    def _note_old_log_probs_together(self, rows: Sequence[Sampled]) -> None:
        """Old log-probabilities of rows that every rank holds: each computes as many of them, some twice if need be."""
        ranks, rank = self.accelerator.num_processes, self.accelerator.process_index
        share = math.ceil(len(rows) / ranks)
        own = [rows[place % len(rows)] for place in range(rank * share, (rank + 1) * share)]
        self._note_old_log_probs(own)
        for row, old_log_probs in zip(rows, gather_object([row.old_log_probs for row in own]), strict=False):
            row.old_log_probs = old_log_probs

    # -----------------------------------------------------------------------------------------------------------------

    def _begin(self, inputs: list[dict[str, Any]]) -> Generation:
        if self._sampling is None:
            return super()._begin(inputs)
        rows_N = getattr(inputs, "rows", inputs)
        filling = self._sampling.begun = self._begin_filling(rows_N, self._sampling)
        for round_ in filling.in_flight:  # while they are scored, and before the policy is updated
            self._note_old_log_probs(round_.rows_N)
        return BegunFilling(rows_N, filling=filling)

    def _carry_on(self, generation: Generation) -> None:
        """Generates the first round that a batch needs which was begun a step ago, and scored since."""
        if self._sampling is None or not isinstance(generation, BegunFilling) or generation.filling is None:
            return
        filling, sampling = generation.filling, self._sampling
        with filling.cancelled_on_error():
            sampling.use_surplus(filling, self.state.global_step, setting(self.args, "max_group_age"))
            while filling.in_flight and filling.in_flight[0].step < self.state.global_step:
                self._take(filling, sampling)
            self._generate_round(filling, sampling)

    def _end(self, generation: Generation) -> dict[str, Any]:
        if self._sampling is None or not isinstance(generation, BegunFilling):
            return super()._end(generation)
        self._filling_due = generation.filling
        if self._sampling.begun is generation.filling:
            self._sampling.begun = None
        return self._generate_and_score(generation.inputs)

    def _forget(self, generation: Generation | None) -> None:
        super()._forget(generation)
        if isinstance(generation, BegunFilling) and generation.filling is not None:
            generation.filling.cancel()
