"""`RecordTrainer`: what each generation was scored and trained with, on rank 0's disk, if `record_rewards` asks for it.

Short overrides around `super()`. TRL gathers prompts, completions, rewards and advantages of all ranks for its table of
completions (TRL 1.16, grpo_trainer.py:2833); this layer adds what the table lacks. Knows nothing of the service.

Legend: N rows on this rank, R rows of the global batch.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object

from grpo_plugin.config import setting
from grpo_plugin.rewards.columns import row_columns
from grpo_plugin.rewards.recording import RewardRecords, Rows, share_of
from grpo_plugin.trainer.dynamic_sampling import DynamicSamplingTrainer
from reward_server.client.plain import plain


class RecordTrainer(DynamicSamplingTrainer):
    """TRL's trainer, which records the groups that it trains on."""

    reward_func_names: list[str]
    _tokenizer: Any
    _reward_records: RewardRecords | None = None
    _generated_ids_N: Sequence[Sequence[int]] = ()

    def _generate(self, prompts: list[Any]) -> Any:
        generated = super()._generate(prompts)
        self._generated_ids_N = generated[1]  # also where it is played back: of the generation that is being ended
        return generated

    def _generate_and_score(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super()._generate_and_score(inputs)
        if setting(self.args, "record_rewards") is not None and self.model.training:
            self._record_rows(getattr(inputs, "rows", inputs))
        return batch

    def _config_digest(self) -> str:
        """The configuration that scored the generation; a subclass knows it."""
        return ""

    def _record_rows(self, inputs: list[dict[str, Any]]) -> None:
        """Gathers what TRL has not, on every rank, and records all rows on rank 0."""
        ended = {*self._ending_ids, self.processing_class.pad_token_id}
        chosen = setting(self.args, "reward_columns")
        own = [
            (
                len(ids),
                not ids or ids[-1] not in ended,
                {k: plain(v) for k, v in row_columns(row, 0, {}, chosen).items()},
            )
            for ids, row in zip(self._generated_ids_N, inputs, strict=True)
        ]
        lengths_R, truncated_R, columns_R = zip(*gather_object(own), strict=True)
        if not self.accelerator.is_main_process:
            return
        count = len(lengths_R)
        logged = {name: list(self._logs[name])[-count:] for name in ("prompt", "completion", "advantages")}
        scores = {name: list(self._logs["rewards"][name])[-count:] for name in self.reward_func_names}
        dropped = [False] * count if self._dropped_R is None else self._dropped_R.tolist()
        rows = Rows(
            logged["prompt"],
            logged["completion"],
            columns_R,
            scores,
            self.reward_weights.tolist(),
            self._failures_R or [{}] * count,
            logged["advantages"],
            lengths_R,
            truncated_R,
            dropped,
        )
        self._records_of_run().offer(rows, self.state.global_step, self.num_generations, self._config_digest())

    @property
    def _ending_ids(self) -> Sequence[int]:
        """The tokens that end a completion; TRL before 1.14 knows the tokenizer's own alone."""
        ending: Sequence[int] = getattr(self, "eos_token_ids", None) or [self._tokenizer.eos_token_id]
        return ending

    def _records_of_run(self) -> RewardRecords:
        if self._reward_records is None:
            folder = Path(self.args.output_dir)
            self._reward_records = RewardRecords(folder, share_of(setting(self.args, "record_rewards")), folder.name)
            weakref.finalize(self, self._reward_records.close)  # also runs when the interpreter exits
        return self._reward_records

    def train(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().train(*args, **kwargs)
        finally:
            if self._reward_records is not None:
                self._reward_records.close()
                self._reward_records = None
