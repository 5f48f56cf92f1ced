"""Fused kernels of a model's layers (norms, rotary embedding, activations): which ones a run could use and does not.

Owns that advice. The kernels themselves are of liger-kernel or of the hub, and transformers puts them into the model;
the trial at start-up runs the model with them, so whether rows stay apart is found out with the kernels in place.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch


def unused_kernels(args: Any, model: Any, device: torch.device) -> str | None:
    """What to switch on for faster layers on this device, as a sentence; None if there is nothing."""
    if device.type != "cuda" or args.use_liger_kernel or getattr(model, "use_kernels", False):
        return None
    for package, switch in (
        ("kernels", 'model_init_kwargs={"use_kernels": True}'),  # what TRL 1.16 recommends; loads them from the hub
        ("liger_kernel", "use_liger_kernel=True"),
    ):
        if importlib.util.find_spec(package) is not None:
            return (
                f"norms, rotary embedding and activations take most of the time beside matrix products: {switch} makes "
                f"each of them one kernel ({package} is installed)"
            )
    return None
