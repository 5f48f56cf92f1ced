"""`KLAnchorTrainer`: what the KL term pulls towards, the reference model or the policy that sampled.

Short overrides around `super()`; with `kl_anchor="reference"` they do nothing. Owns the anchor; the term is TRL's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from accelerate.logging import get_logger

from grpo_plugin.config import setting
from grpo_plugin.trainer.token_batches import TokenBatchTrainer

logger = get_logger(__name__)


class KLAnchorTrainer(TokenBatchTrainer):
    """TRL's trainer whose KL term may be anchored to the old policy: no reference model is loaded then."""

    _kl_beta = 0.0

    @contextlib.contextmanager
    def _without_reference_model(self, args: Any) -> Iterator[None]:
        """Inside, `args.beta` is 0 if the anchor is the old policy: TRL then makes no reference model.

        Leans on TRL 1.16 (grpo_trainer.py:957): `beta == 0.0` is what decides. Afterwards `self.beta` stays 0 but for
        the loss, so that no reference log-probabilities are computed either.
        """
        if setting(args, "kl_anchor") != "old":
            yield
            return
        self._kl_beta, args.beta = args.beta, 0.0
        try:
            yield
        finally:
            args.beta = self._kl_beta

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        inputs, beta = self._anchored(inputs)
        before, self.beta = self.beta, beta
        try:
            return super()._compute_loss(model, inputs)
        finally:
            self.beta = before

    def _anchored(self, inputs: dict[str, Any]) -> tuple[dict[str, Any], float]:
        """The batch with its anchor's log-probabilities, and the weight of the KL term."""
        if not self._kl_beta:
            return inputs, self.beta
        if "old_per_token_logps" in inputs:
            return {**inputs, "ref_per_token_logps": inputs["old_per_token_logps"]}, self._kl_beta
        # TRL leaves them out where the policy that samples is the one that is updated: the term is zero, and so is its
        # gradient, 1 - π_old/π_θ.
        logger.warning_once(
            f"kl_anchor 'old' with beta {self._kl_beta:g} has no effect: a generation is trained on in one optimizer "
            f"step, since gradient_accumulation_steps ({self.args.gradient_accumulation_steps}) is a multiple of "
            f"steps_per_generation × num_iterations ({self.args.steps_per_generation} × {self.num_iterations}), so the "
            "policy is still the old policy. Raise num_iterations or steps_per_generation, or set beta to 0"
        )
        self._metrics["train" if self.model.training else "eval"]["kl"].append(0.0)
        return inputs, 0.0
