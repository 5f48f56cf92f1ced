"""The attention function that keeps packed rows apart.

Registered in transformers' AttentionInterface over the implementations that it stands in for; whatever is not packed
goes to the original. On CUDA packed rows take torch's kernel of variable length, or the flash attention that the model
was loaded with; elsewhere scaled_dot_product_attention a segment, which computes no pair of tokens of different rows.

Refuses what it does not know: an argument that a model passes and packed attention would ignore raises
NotImplementedError. Can write down the calls that a model makes, for the trial at start-up. Knows nothing of trainers.

Legend: T tokens of the packed sequence, H heads, D head size.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from packaging.version import Version
from torch.nn import functional
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from packed_attention.segments import Segments
from packed_attention.shared_keys import Tensors, attend_to_prompt_and_self, can_attend
from packed_attention.varlen import VarlenKernel, check_window, select_keys

STANDS_IN_FOR = ("sdpa", "flash_attention_2", "flash_attention_3")

# What models pass to attention beside what changes its result: they are of no consequence to packed rows.
_WITHOUT_EFFECT = {
    *("position_ids", "cache_position", "past_key_values", "past_key_value", "use_cache", "return_dict"),
    *("output_attentions", "output_hidden_states", "output_router_logits", "num_items_in_batch", "logits_to_keep"),
    *("layer_idx", "position_embeddings"),
}


@dataclass(frozen=True, slots=True)
class AttentionCall:
    """One call of a model's attention, as the trial at start-up wants to know it."""

    module: Any
    attention_mask: torch.Tensor | None
    queries: int
    sliding_window: int | None
    dropout: float
    causal: bool
    path: str  # "original" for rows that are not packed, else "flash", "varlen" or "segments"


_calls: list[AttentionCall] | None = None


@contextlib.contextmanager
def observed_calls() -> Iterator[list[AttentionCall]]:
    """Inside, every call of a registered attention function is written down, packed or not."""
    global _calls  # noqa: PLW0603 - models hand no context through to their attention
    before, _calls = _calls, []
    try:
        yield _calls
    finally:
        _calls = before


def register(kernel: VarlenKernel | None = None) -> None:
    """Makes the attention implementations in `STANDS_IN_FOR` take `segments`. Calling it twice is harmless.

    `kernel` replaces torch's own kernel of variable length.
    """
    for name in STANDS_IN_FOR:
        known = ALL_ATTENTION_FUNCTIONS[name]
        if not isinstance(known, PackedAttention):
            ALL_ATTENTION_FUNCTIONS.register(name, PackedAttention(name, known, kernel or VarlenKernel.installed()))
        elif kernel is not None:
            known.kernel = kernel


def installed_kernel_problem(device: torch.device, windows: bool) -> str | None:
    """What the registered kernel of variable length does otherwise than packed attention needs; None if nothing."""
    kernel = ALL_ATTENTION_FUNCTIONS["sdpa"].kernel
    return None if kernel is None else kernel.problem(device, windows)


class PackedAttention:
    """An attention function of transformers that takes packed rows too."""

    def __init__(self, name: str, original: Any, kernel: VarlenKernel | None):
        self.original = original
        self._name = name
        self.kernel = kernel

    def __call__(
        self, module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, Any]:
        segments: Segments | None = kwargs.pop("segments", None)
        if segments is not None:
            return self._packed(module, query, key, value, segments, kwargs)
        if _calls is not None:
            _calls.append(_call(module, query, attention_mask, kwargs, "original"))
        result: tuple[torch.Tensor, Any] = self.original(module, query, key, value, attention_mask, **kwargs)
        return result

    # Dynamo would guard on the lengths of segments and compile again for every micro-batch, until it gives up at its
    # limit. The layers around are compiled all the same.
    @torch.compiler.disable
    def _packed(
        self, module: Any, query: Any, key: Any, value: Any, segments: Segments, kwargs: dict[str, Any]
    ) -> tuple[torch.Tensor, Any]:
        _check_shapes(query, key, segments)
        causal = _is_causal(module, kwargs)
        if not causal and not segments.any_direction:
            raise NotImplementedError("packed attention is causal, and this layer's is not")
        path = self._path(query, value, kwargs)
        if _calls is not None:
            _calls.append(_call(module, query, None, kwargs, path))
        if path == "flash":
            return self._flash(module, query, key, value, segments, kwargs)
        options = _known(**kwargs)
        if path == "segments":
            return attend_by_segment(query, key, value, segments, **options, causal=causal), None
        assert self.kernel is not None
        options.pop("dropout")
        return self.kernel.attend(query, key, value, segments, **options, causal=causal), None

    def _path(self, query: torch.Tensor, value: torch.Tensor, kwargs: dict[str, Any]) -> str:
        if self._name != "sdpa":
            return "flash"
        if self.kernel is None or query.device.type not in self.kernel.devices or kwargs.get("dropout"):
            return "segments"
        half = value.dtype in (torch.float16, torch.bfloat16)
        return "varlen" if half or query.device.type == "cpu" else "segments"

    def _flash(
        self, module: Any, query: Any, key: Any, value: Any, segments: Segments, kwargs: dict[str, Any]
    ) -> tuple[torch.Tensor, Any]:
        if segments.keys is not None:
            key, value = (select_keys(x[0].transpose(0, 1), segments.keys) for x in (key, value))
            key, value = (x.transpose(0, 1)[None] for x in (key, value))
        lengths = {
            "cu_seq_lens_q": segments.ends_q,
            "cu_seq_lens_k": segments.ends_k,
            "max_length_q": segments.longest_q,
            "max_length_k": segments.longest_k,
        }
        result: tuple[torch.Tensor, Any] = self.original(module, query, key, value, None, **kwargs, **lengths)
        return result


def _call(
    module: Any, query: torch.Tensor, mask: torch.Tensor | None, kwargs: dict[str, Any], path: str
) -> AttentionCall:
    window, dropout = kwargs.get("sliding_window"), kwargs.get("dropout") or 0.0
    return AttentionCall(module, mask, query.shape[2], window, dropout, _is_causal(module, kwargs), path)


def _is_causal(module: Any, kwargs: dict[str, Any]) -> bool:
    told = kwargs.get("is_causal")
    return bool(getattr(module, "is_causal", True) if told is None else told)


def _check_shapes(query: torch.Tensor, key: torch.Tensor, segments: Segments) -> None:
    tokens = segments.tokens
    if query.shape[0] != 1 or query.shape[2] != tokens or key.shape[2] != tokens:
        shapes = f"{tuple(query.shape)} queries and {tuple(key.shape)} keys"
        raise NotImplementedError(
            f"packed attention takes one sequence of {tokens} tokens, and this layer has {shapes}"
        )


def _known(
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    is_causal: bool | None = None,
    **others: Any,
) -> dict[str, Any]:
    """The arguments that packed attention has; an error for one that it does not have and would have to ignore."""
    for name, value in others.items():
        if value is not None and value is not False and name not in _WITHOUT_EFFECT:
            raise NotImplementedError(f"packed attention has no {name}")
    return {"dropout": dropout, "scaling": scaling, "sliding_window": sliding_window}


def _takes_groups(device: torch.device) -> bool:
    """Whether the kernels that SDPA has take several heads of queries for one of keys.

    Those of a CPU do so since torch 2.9 (pull request 157893; 2.10 to be safe), CUDA's memory-efficient one does not.
    """
    return device.type == "cpu" and Version(torch.__version__) >= Version("2.10")


def attend_by_segment(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    segments: Segments,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    causal: bool = True,
) -> torch.Tensor:
    """Attention of packed rows, one segment after another. Takes (1, H, T, D), returns (1, T, H, D of the values).

    Raises NotImplementedError for a sliding window that is not causal.
    """
    check_window(sliding_window, causal)
    groups = query.shape[1] // key.shape[1]
    if groups > 1 and not _takes_groups(query.device):
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    together = causal and sliding_window is None and can_attend(query, value, dropout)
    tokens = [sum(segments.lengths[one] for one in run.members) for run in segments.runs]
    # Split, not sliced: the backward of a slice fills a tensor as long as the whole.
    parts = list(zip(*(x.split(tokens, dim=2) for x in (query, key, value)), strict=True))

    def alone(part: Tensors, prompt: Tensors | None, segment: int) -> torch.Tensor:
        q, k, v = part
        if prompt is not None:
            k, v = torch.cat([prompt[1], k], dim=2), torch.cat([prompt[2], v], dim=2)
        mask = segments.mask(segment, sliding_window, query)
        grouped = q.shape[1] != k.shape[1]
        return functional.scaled_dot_product_attention(
            q, k, v, mask, dropout, causal and mask is None, scale=scaling, enable_gqa=grouped
        )

    outputs = []
    for part, run in zip(parts, segments.runs, strict=True):
        prompt = parts[run.before] if run.before >= 0 else None
        lengths = [segments.lengths[one] for one in run.members]
        if together and prompt is not None:
            outputs.append(attend_to_prompt_and_self(part, prompt[1:], lengths, scaling))
        else:
            each = zip(*(x.split(lengths, dim=2) for x in part), strict=True)
            outputs += [alone(own, prompt, segment) for own, segment in zip(each, run.members, strict=True)]
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous()
