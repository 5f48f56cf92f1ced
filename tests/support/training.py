"""Trains tiny models with stock TRL and with our trainer, alike but for what a test changes, and compares them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM
from trl import GRPOConfig, GRPOTrainer

from grpo_plugin import RemoteGRPOConfig, RemoteGRPOTrainer
from tests.end_to_end.ranks import skewed_rollout
from tests.support import scoring
from tests.support.builders import make_dataset

QUIET = {"save_strategy": "no", "report_to": "none", "disable_tqdm": True, "logging_steps": 1}
ON_CPU = {"use_cpu": True, "bf16": False, "activation_checkpointing": False}

# A step is one micro-batch of two groups.
ONE_MICRO_BATCH = {
    **QUIET,
    **ON_CPU,
    "max_steps": 5,
    "per_device_train_batch_size": 8,
    "num_generations": 4,
    "max_completion_length": 12,
    "learning_rate": 1e-2,
}

# A step is four micro-batches of a group each. Plain SGD, since Adam would blow up gradients that are rounding alone.
FOUR_MICRO_BATCHES = {
    **QUIET,
    **ON_CPU,
    "max_steps": 3,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 4,
    "num_generations": 4,
    "max_completion_length": 24,
    "optim": "sgd",
    "learning_rate": 0.02,
    "max_grad_norm": 0.0,
}


def remote(folder: Path, server: Any = None, **changes: Any) -> RemoteGRPOConfig:
    """Our arguments, with TRL's own micro-batches, for rewards from a server if one is given."""
    endpoint = {} if server is None else {"reward_endpoint": server.endpoint}
    options = {**ONE_MICRO_BATCH, "token_batches": False, **endpoint, **changes}
    return RemoteGRPOConfig(str(folder / "ours"), **options)


def stock(folder: Path, **changes: Any) -> GRPOConfig:
    return GRPOConfig(str(folder / "stock"), **{**ONE_MICRO_BATCH, **changes})


def train(
    cls: type, model: str, args: GRPOConfig, rewards: Any = None, data: Dataset | None = None, **more: Any
) -> Any:
    trainer = cls(model, reward_funcs=rewards, args=args, train_dataset=data or make_dataset(), **more)
    trainer.train()
    return trainer


def train_skewed(cls: type, folder: Path, model: str, reward: Any = scoring.signal_in_half, **changes: Any) -> Any:
    """Trains on completions of skewed lengths, half of whose groups have no signal; `cls` is TRL's trainer or ours."""
    made = {name: changes.pop(name) for name in ("peft_config", "eval_dataset", "rollout_func") if name in changes}
    config = GRPOConfig if cls is GRPOTrainer else RemoteGRPOConfig
    trainer = cls(
        model,
        reward_funcs=reward,
        args=config(str(folder / cls.__name__), **{**FOUR_MICRO_BATCHES, **changes}),
        train_dataset=make_dataset(48),
        **{"rollout_func": skewed_rollout, **made},
    )
    trainer.counting = Counting(trainer.model)
    trainer.train()
    return trainer


def train_both(folder: Path, model: str, ours: dict[str, Any] | None = None, **changes: Any) -> tuple[Any, Any]:
    """Our trainer and stock TRL's, trained alike but for the settings `ours`."""
    return (
        train_skewed(RemoteGRPOTrainer, folder, model, **changes, **(ours or {})),
        train_skewed(GRPOTrainer, folder, model, **changes),
    )


class Counting:
    """Counts forwards and their tokens, of a trainer's training steps."""

    forwards = tokens = 0

    def __init__(self, model: torch.nn.Module):
        model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, model: torch.nn.Module, args: Any, kwargs: Any) -> None:
        if kwargs.get("fused_lm_head") and torch.is_grad_enabled() and model.training:  # not in the trial at start-up
            self.forwards += 1
            self.tokens += kwargs["input_ids"].numel()


def largest_difference(a: Any, b: Any) -> float:
    """Of the weights of two trainers."""
    pairs = zip(a.model.state_dict().values(), b.model.state_dict().values(), strict=True)
    return max((x - y).abs().max().item() for x, y in pairs)


def moved(trainer: Any, model: str) -> bool:
    start = AutoModelForCausalLM.from_pretrained(model).state_dict()
    return any(not torch.equal(value, start[name]) for name, value in trainer.model.state_dict().items())
