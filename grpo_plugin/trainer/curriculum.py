"""`CurriculumTrainer`: prompts outside a band of pass shares are visited less, if `difficulty_band` asks for it.

Short overrides around `super()`; `sampling.difficulty` decides. All ranks note the same visits, so that they draw the
same epochs; `sampling.storage` keeps the history in checkpoints. Knows nothing of the service.

Legend: N rows on this rank, R rows of the global batch, B groups of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch.utils.data import IterableDataset

from grpo_plugin.config import setting
from grpo_plugin.sampling import storage
from grpo_plugin.sampling.difficulty import Difficulty, DifficultySampler, key_of
from grpo_plugin.sampling.refill import Round
from grpo_plugin.sampling.storage import kept_in_checkpoints
from grpo_plugin.trainer.report import ReportByTrainer
from reward_server.errors import ConfigError


class CurriculumTrainer(ReportByTrainer):
    """TRL's trainer, which comes back less often to prompts that are too easy or too hard."""

    train_dataset: Any
    _difficulty: Difficulty | None = None

    def train(self, *args: Any, **kwargs: Any) -> Any:
        band = setting(self.args, "difficulty_band")
        self._difficulty = None
        if band is None:
            return super().train(*args, **kwargs)
        self._check_difficulty()
        weight, visits = setting(self.args, "difficulty_weight"), setting(self.args, "difficulty_visits")
        self._difficulty = Difficulty(band, weight, visits, self.args.seed)
        with kept_in_checkpoints(self, storage.DIFFICULTY, self._difficulty):
            return super().train(*args, **kwargs)

    def _check_difficulty(self) -> None:
        if isinstance(self.train_dataset, IterableDataset):
            raise ConfigError(
                "difficulty_band changes how often a prompt is visited, and a stream comes in its own order: load the "
                "training data without streaming, or leave difficulty_band out"
            )
        named, names = setting(self.args, "difficulty_scorer"), self.reward_func_names
        if named is None and len(names) > 1:
            raise ConfigError(
                f"difficulty_band needs to know whose scores say that a completion passed: set difficulty_scorer to "
                f"one of {', '.join(names)}"
            )
        if named is not None and named not in names:
            raise ConfigError(f"there is no scorer {named!r} for difficulty_scorer; there are {', '.join(names)}")

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        sampler = super()._get_train_sampler(dataset)
        if self._difficulty is None:
            return sampler
        return DifficultySampler(sampler, self._difficulty, (dataset or self.train_dataset)["prompt"])

    def _generate_and_score(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        if self._difficulty is None or not self.model.training or setting(self.args, "dynamic_sampling"):
            return super()._generate_and_score(inputs)
        keys_N = [key_of(row["prompt"]) for row in getattr(inputs, "rows", inputs)]  # which TRL may add images to
        batch = super()._generate_and_score(inputs)
        self._note_visits(self._difficulty, gather_object(keys_N), self._rewards_RS)
        return batch

    def _note_scored(self, round_: Round) -> None:
        super()._note_scored(round_)
        if self._difficulty is not None and round_.scores_RS is not None:
            keys_R = gather_object([key_of(sampled.row["prompt"]) for sampled in round_.rows_N])
            self._note_visits(self._difficulty, keys_R, round_.scores_RS)

    def _note_visits(self, difficulty: Difficulty, keys_R: list[str], scores_RS: torch.Tensor) -> None:
        names = self.reward_func_names
        scorer = names.index(setting(self.args, "difficulty_scorer") or names[0])
        shares_B = scores_RS[:, scorer].view(-1, self.num_generations).nanmean(dim=1)
        for key, share in zip(keys_R[:: self.num_generations], shares_B.tolist(), strict=True):
            difficulty.add(key, share)
        metrics = self._metrics["train"]
        metrics["sampling/difficulty"].append(1.0 - shares_B.nanmean().item())
        metrics["sampling/outside_band"].append(difficulty.outside())

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if self._difficulty is None or not checkpoint:
            return
        state = storage.read_on_main(Path(checkpoint), storage.DIFFICULTY)
        if state is not None:
            within = not float(self.state.epoch or 0.0).is_integer()
            self._difficulty.load(state, within_epoch=within)
