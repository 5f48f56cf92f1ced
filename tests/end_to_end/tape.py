"""What a run with `dynamic_sampling` trains on, kept generation by generation, and given to stock TRL to train on.

A tape is a list with, for each generation, the rows of all ranks in order: prompt and completion ids, scores of each
reward function, and the old log-probabilities of rows that were sampled before the generation.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object

Tape = list[dict[str, Any]]


def record(trainer: Any, tape: Tape) -> None:
    """Adds to the tape what the trainer makes a batch of."""
    train_on = trainer._train_on

    def recording(batch: Any) -> Any:
        own = [
            {
                "prompt_ids": list(row.prompt_ids),
                "completion_ids": list(row.completion_ids),
                "sampler": row.sampler_log_probs,
                "old": None if row.old_log_probs is None else row.old_log_probs.tolist(),
            }
            for row in batch.rows_N
        ]
        tape.append({"rows": gather_object(own), "scores": batch.scores_RS.tolist(), "has_old": batch.has_old})
        return train_on(batch)

    trainer._train_on = recording


class Player:
    """Plays a tape: a rollout and a reward function for stock TRL, one generation after another."""

    def __init__(self, path: Path):
        self.tape: Tape = json.loads(path.read_text())
        self.generation = -1
        self.rows: list[dict[str, Any]] = []
        self.place = slice(0, 0)

    def rollout(self, prompts: list[Any], trainer: Any) -> dict[str, Any]:
        self.generation += 1
        first = trainer.accelerator.process_index * len(prompts)
        self.place = slice(first, first + len(prompts))
        self.rows = self.tape[self.generation]["rows"][self.place]
        completion_ids = [row["completion_ids"] for row in self.rows]
        return {
            "prompt_ids": [row["prompt_ids"] for row in self.rows],
            "completion_ids": completion_ids,
            "logprobs": [row["sampler"] for row in self.rows],
        }

    def reward(self, completions: list[Any], **_: Any) -> list[float]:
        return [score for (score,) in self.tape[self.generation]["scores"][self.place]]

    def give_old_log_probs(self, trainer: Any) -> None:
        """Rows that were sampled earlier have the log-probabilities of then; TRL computes all of them anew."""
        compute = trainer._get_per_token_logps_and_entropies
        given: set[int] = set()

        def computing(*args: Any, **kwargs: Any) -> Any:
            found = compute(*args, **kwargs)
            if torch.is_grad_enabled() or self.generation in given:
                return found
            given.add(self.generation)  # the old policy's come first
            log_probs_NT = found[0].clone()
            for row, old in enumerate(row["old"] for row in self.rows):
                if old is not None:
                    log_probs_NT[row, : len(old)] = torch.tensor(old)
            return (log_probs_NT, *found[1:])

        trainer._get_per_token_logps_and_entropies = computing
