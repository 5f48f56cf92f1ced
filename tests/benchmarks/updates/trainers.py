"""Trainers of a case, alike but for what is measured: stock TRL's and ours with some options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PrinterCallback
from trl import GRPOConfig, GRPOTrainer

from grpo_plugin import RemoteGRPOConfig, RemoteGRPOTrainer
from tests.benchmarks.updates.cases import GROUP, Case, dataset_of, reward_of, rollout_of

STOCK: dict[str, Any] | None = None
# Who trains, by the options of ours.
OPTIONS: dict[str, dict[str, Any] | None] = {
    "stock": STOCK,
    "ours": {},
    "padded": {"padding_free": False},
    "unshared": {"shared_prefix": False},
}
NAMES = {
    "stock": "stock TRL",
    "ours": "ours",
    "padded": "ours, sorted and trimmed",
    "unshared": "ours, prompts not shared",
}

# A generation is trained on twice, so TRL needs old log-probabilities; plain SGD, so that gradients can be compared.
COMMON: dict[str, Any] = {
    "num_generations": GROUP,
    "num_iterations": 2,
    "max_completion_length": 1024,
    "learning_rate": 1e-4,
    "optim": "sgd",
    "max_grad_norm": 0.0,
    "logging_strategy": "no",
    "report_to": "none",
    "save_strategy": "no",
    "disable_tqdm": True,
    "gradient_checkpointing": False,
}


def make_trainer(case: Case, model: str, folder: Path, ours: dict[str, Any] | None, **options: Any) -> GRPOTrainer:
    """Stock TRL's trainer, or ours with the options `ours`, which has found its layout: that is not a step's work."""
    settings = {**COMMON, **options, **(ours or {})}
    cls, config = (GRPOTrainer, GRPOConfig) if ours is None else (RemoteGRPOTrainer, RemoteGRPOConfig)
    trainer = cls(
        model,
        reward_funcs=reward_of(case),
        args=config(str(folder), **settings),
        train_dataset=dataset_of(case),
        rollout_func=rollout_of(case),
    )
    trainer.remove_callback(PrinterCallback)
    if ours is not None:
        _ = trainer._layout
    return trainer
