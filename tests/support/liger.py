"""A package that stands in for liger-kernel, which needs a GPU: it replaces the norms of a model, as Liger does."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers.integrations import liger

Norm = Callable[[Any, torch.Tensor], torch.Tensor]


def root_mean_square(norm: Any, hidden: torch.Tensor) -> torch.Tensor:
    """What RMSNorm computes, written otherwise."""
    return norm.weight * torch.nn.functional.rms_norm(hidden, hidden.shape[-1:], eps=norm.variance_epsilon)


def over_the_sequence(norm: Any, hidden: torch.Tensor) -> torch.Tensor:
    """A kernel that is wrong for packed rows: each token is shifted by the mean of its sequence."""
    return root_mean_square(norm, hidden) + 0.1 * hidden.mean(dim=1, keepdim=True)


def install(monkeypatch: pytest.MonkeyPatch, norm: Norm) -> None:
    """Makes `use_liger_kernel` put `norm` in place of every RMSNorm of a model."""

    def apply(model: Any, **config: bool) -> None:
        assert config == {"fused_linear_cross_entropy": False}
        for module in model.modules():
            if type(module).__name__.endswith("RMSNorm"):
                module.forward = types.MethodType(norm, module)

    package = types.ModuleType("liger_kernel.transformers")
    package._apply_liger_kernel_to_instance = apply  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "liger_kernel", types.ModuleType("liger_kernel"))
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", package)
    monkeypatch.setattr(liger, "is_liger_kernel_available", lambda: True)
