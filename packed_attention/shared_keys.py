"""Attention of a prompt's completions on a CPU: all of them look at the prompt in one call, each at itself in another.

Two attentions over different keys make one over all of them, if each is weighed by the sum of its exponentials
("Ring Attention", arXiv:2310.01889; "Hydragen", arXiv:2402.05099). So no completion needs a copy of its prompt's keys,
nor a mask. The backward of a part is the kernel's, given the output and the sum of exponentials of the whole.

Owns these two formulas. Leans on torch's CPU kernel and its backward (tried with torch 2.13), which are SDPA's for
float32; says whether it can.

Legend: H heads, T tokens of the completions, P tokens of the prompt, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

_forward: Any = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
_backward: Any = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu_backward", None)

Tensors = tuple[torch.Tensor, ...]


def can_attend(query: torch.Tensor, value: torch.Tensor, dropout: float) -> bool:
    """Whether the kernel takes such tensors. Half precision is left to one call, which rounds once."""
    known = _forward is not None and _backward is not None
    alike = query.dtype is value.dtype is torch.float32 and query.shape[-1] == value.shape[-1]
    return known and alike and query.device.type == "cpu" and not dropout


def attend_to_prompt_and_self(
    own: Tensors, prompt: Tensors, lengths: Sequence[int], scaling: float | None
) -> torch.Tensor:
    """What completions of `lengths` tokens see: all of the prompt, and causally themselves.

    `own` are their queries, keys and values, `prompt` its keys and values: shapes (1, heads, T or P, D). Returns
    (1, H, T, D).
    """
    query, key, value = own
    output: torch.Tensor = _PromptAndSelf.apply(query, *prompt, key, value, list(lengths), scaling)
    return output


class _PromptAndSelf(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        prompt_key: torch.Tensor,
        prompt_value: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        lengths: list[int],
        scaling: float | None,
    ) -> torch.Tensor:
        to_prompt, prompt_sum = _forward(query, prompt_key, prompt_value, 0.0, False, scale=scaling)
        own = [_forward(*each, 0.0, True, scale=scaling) for each in _each(lengths, query, key, value)]
        to_self, self_sum = (torch.cat(parts, dim=2) for parts in zip(*own, strict=True))
        total = torch.logaddexp(prompt_sum, self_sum)
        output = to_prompt * (prompt_sum - total).exp()[..., None] + to_self * (self_sum - total).exp()[..., None]
        ctx.save_for_backward(query, prompt_key, prompt_value, key, value, output, total)
        ctx.lengths, ctx.scaling = lengths, scaling
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, prompt_key, prompt_value, key, value, output, total = ctx.saved_tensors
        whole = (gradient, query, prompt_key, prompt_value, output, total)
        to_prompt = _backward(*whole, 0.0, False, scale=ctx.scaling)
        each = _each(ctx.lengths, gradient, query, key, value, output, total)
        own = [_backward(*tensors, 0.0, True, scale=ctx.scaling) for tensors in each]
        of_query, of_key, of_value = (torch.cat(parts, dim=2) for parts in zip(*own, strict=True))
        return of_query.add_(to_prompt[0]), to_prompt[1], to_prompt[2], of_key, of_value, None, None


def _each(lengths: Sequence[int], *tensors: torch.Tensor) -> list[Tensors]:
    """The tensors of one completion after another."""
    return list(zip(*(x.split(lengths, dim=2) for x in tensors), strict=True))
