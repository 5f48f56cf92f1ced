"""A trainer that notes what dynamic_sampling generates, scores and trains on, and a task with solved prompts."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from grpo_plugin import RemoteGRPOTrainer
from tests.support.training import remote

SIZE = 4
# One prompt in three is not solved by every completion. Two groups a step, so eight steps an epoch.
NAMES = [f"{'solved' if number % 3 else 'open'} {number}" for number in range(16)]


def passes(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
    """1.2 for what is solved, which TRL's standard deviation takes for signal; else half of a group passes."""
    return [1.2 if "solved" in prompt else float(row % 2) for row, prompt in enumerate(prompts)]


def all_solved(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
    return [1.2] * len(prompts)


def all_open(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
    return [float(row % 2) for row in range(len(prompts))]


class Spy(RemoteGRPOTrainer):
    """Notes what is generated, with which weights, when scores are taken, and what is trained on."""

    def __init__(self, *args: Any, **kwargs: Any):
        self.events: list[str] = []
        self.prompts: list[str] = []  # that were generated for
        self.scored: list[str] = []
        self.generated: list[int] = []  # how many prompts, by the end of each step
        self.sampled_with: dict[int, dict[str, torch.Tensor]] = {}
        self.batches: list[Any] = []
        self.trained: list[dict[str, Any]] = []
        super().__init__(*args, **kwargs)

    def _generate_rows(self, rows_N: list[dict[str, Any]], groups: int, *more: Any) -> Any:
        self.events.append("generate")
        self.prompts += [row["prompt"] for row in rows_N[::SIZE]]
        self.sampled_with[self.state.global_step] = copy.deepcopy(self.model.state_dict())
        return super()._generate_rows(rows_N, groups, *more)

    def _score_rows(self, round_: Any) -> None:
        self.events.append("score")
        self.scored += [row.prompt for row in round_.rows_N[::SIZE]]
        super()._score_rows(round_)

    def _train_on(self, batch: Any) -> Any:
        self.events.append("train")
        self.generated.append(len(self.prompts))
        self.batches.append(batch)
        self.trained.append(super()._train_on(batch))
        return self.trained[-1]

    def kept(self) -> list[list[str]]:
        """The prompts of each step's groups."""
        return [[row.prompt for row in batch.rows_N[::SIZE]] for batch in self.batches]

    def logged(self, name: str) -> list[float]:
        return [line[name] for line in self.state.log_history if name in line]


def data(names: list[str] = NAMES) -> Dataset:
    return Dataset.from_dict({"prompt": names, "name": names})


def run(
    model: str, folder: Path, reward: Any = passes, server: Any = None, resume: str | None = None, **changes: Any
) -> Spy:
    made = {
        name: changes.pop(name)
        for name in ("train_dataset", "eval_dataset", "rollout_func", "peft_config", "tools", "processing_class")
        if name in changes
    }
    args = remote(folder, server, **{"dynamic_sampling": True, "max_steps": 6, "token_batches": True, **changes})
    trainer = Spy(model, reward_funcs=reward, args=args, **{"train_dataset": data(), **made})
    trainer.train(resume_from_checkpoint=resume)
    return trainer
