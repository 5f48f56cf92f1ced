"""Counts a trainer's tokens, times its parts and keeps the gradients of its first optimizer step."""

from __future__ import annotations

import time
from typing import Any

import torch
from transformers import TrainerCallback


class Meter(TrainerCallback):
    """Wraps a trainer that is about to train.

    `seconds["log_probs"]` has a value a call, `seconds["update"]` one an optimizer step: its forwards and backwards,
    planning included, generation and log-probabilities left out.
    """

    def __init__(self, trainer: Any):
        self.tokens = {"log_probs": 0, "update": 0}
        self.seconds: dict[str, list[float]] = {"log_probs": [], "update": []}
        self.gradients: list[torch.Tensor] = []
        self._trainer = trainer
        self._generating = self._update = 0.0
        trainer.model.register_forward_pre_hook(self._count, with_kwargs=True)
        self._wrap("_get_per_token_logps_and_entropies", self._log_probs)
        self._wrap("_generate_and_score_completions", self._generation)
        self._wrap("training_step", self._training_step)
        trainer.add_callback(self)

    def _wrap(self, name: str, timed: Any) -> None:
        inner = getattr(self._trainer, name)

        def outer(*args: Any, **kwargs: Any) -> Any:
            synchronize()
            began = time.perf_counter()
            result = inner(*args, **kwargs)
            synchronize()
            timed(time.perf_counter() - began)
            return result

        setattr(self._trainer, name, outer)

    def _count(self, model: torch.nn.Module, args: Any, kwargs: Any) -> None:
        if kwargs.get("fused_lm_head") and model.training:  # which it is not in the trial at start-up
            self.tokens["update" if torch.is_grad_enabled() else "log_probs"] += kwargs["input_ids"].numel()

    def _log_probs(self, seconds: float) -> None:
        if not torch.is_grad_enabled():
            self.seconds["log_probs"].append(seconds)

    def _generation(self, seconds: float) -> None:
        self._generating += seconds

    def _training_step(self, seconds: float) -> None:
        self._update += seconds
        if self._trainer.accelerator.sync_gradients:
            self.seconds["update"].append(self._update - self._generating)
            self._update = self._generating = 0.0

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self.gradients:
            self.gradients = [p.grad.float().cpu().clone() for p in kwargs["model"].parameters() if p.grad is not None]


def synchronize() -> None:
    """Waits for the device, so that seconds are its own."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
