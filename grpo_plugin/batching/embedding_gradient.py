"""The gradient of log-probabilities with respect to the embeddings of tokens.

Owns how it is taken without touching a parameter. Knows nothing of layouts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def embedding_gradient(model: Any, ids: torch.Tensor, log_probs: Callable[[], torch.Tensor]) -> torch.Tensor | None:
    """The gradient of the sum of `log_probs()` with respect to the embedding of each token id.

    Shape (largest of `ids` + 1, hidden size), float32; what one id's places have is added up, so that it is the same
    whichever way rows lie. It is taken with respect to activations and not to parameters: no hook of DDP or DeepSpeed
    runs, and no parameter's `.grad` is touched. None where the model does not say where its embeddings are, and under
    FSDP, which gathers weights in a backward pass and expects it to end at them.
    """
    embedding = _embedding(model)
    if embedding is None or _is_fully_sharded(model):
        return None
    leaves: list[torch.Tensor] = []
    inputs: list[torch.Tensor] = []

    def cut(_: Any, args: Any, kwargs: Any, output: torch.Tensor) -> torch.Tensor:
        inputs.append(args[0] if args else kwargs["input"])
        leaves.append(output.detach().requires_grad_())
        return leaves[-1].clone()  # some models scale their embeddings in place, which no leaf allows

    handle = embedding.register_forward_hook(cut, with_kwargs=True)
    try:
        with torch.enable_grad():
            total = log_probs().sum()
            if len(leaves) != 1:
                return None
            (gradient,) = torch.autograd.grad(total, leaves)
    finally:
        handle.remove()
    by_id = gradient.new_zeros((int(ids.max()) + 1, gradient.shape[-1]), dtype=torch.float32)
    return by_id.index_add_(0, inputs[0].flatten(), gradient.flatten(0, 1).float())


def _embedding(model: Any) -> Any:
    try:
        return model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return None


def _is_fully_sharded(model: Any) -> bool:
    """Whether it is under FSDP, version 1 or 2 (which puts FSDP before the names of the classes that it shards)."""
    return any(type(module).__name__.startswith(("FullyShardedDataParallel", "FSDP")) for module in model.modules())
