"""torch's attention kernel for sequences of different lengths, under every signature that it has had.

Owns what differs between torch versions: which arguments the installed function takes is read once, and what it does
not take is done around it. Knows nothing of rows, models or trainers.

| torch | takes | done here |
|---|---|---|
| before 2.10 | there is no such function | |
| 2.10 | `is_causal` | heads repeated, queries scaled; no window |
| 2.11 | `scale`, `window_size` | heads repeated |
| 2.12 and later | `scale`, `window_size`, `enable_gqa` | |

Legend: T tokens of queries, K keys, H heads, D head size.
"""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from packed_attention.segments import Segments, visible

# The kernel reads head sizes in units of 8 (FlashAttention-2); others are filled up with zeros.
_HEAD_SIZE_UNIT = 8


@dataclass(frozen=True, slots=True)
class VarlenKernel:
    """A function with one of the signatures above, and the kinds of device that it runs on."""

    function: Callable[..., Any]
    takes: frozenset[str]
    devices: tuple[str, ...] = ("cuda",)

    @classmethod
    def of(cls, function: Callable[..., Any], devices: tuple[str, ...] = ("cuda",)) -> VarlenKernel:
        return cls(function, frozenset(inspect.signature(function).parameters), devices)

    @classmethod
    def installed(cls) -> VarlenKernel | None:
        """torch's own, from version 2.10 on."""
        try:
            from torch.nn.attention.varlen import varlen_attn  # noqa: PLC0415 - not in every torch
        except ImportError:
            return None
        return cls.of(varlen_attn)

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        segments: Segments,
        scaling: float | None,
        sliding_window: int | None,
        causal: bool = True,
    ) -> torch.Tensor:
        """Attention of packed rows. Takes (1, H, T, D), returns (1, T, H, D of the values).

        Raises NotImplementedError for a sliding window where the installed function has none, or that is not causal.
        """
        check_window(sliding_window, causal)
        # Values say which precision is meant: some models normalise queries and keys in float32.
        q, k, v = (x[0].transpose(0, 1).to(value.dtype) for x in (query, key, value))
        scaling = q.shape[-1] ** -0.5 if scaling is None else scaling
        size = v.shape[-1]
        q, k, v = _of_one_head_size(q, k, v)
        if segments.keys is not None:
            k, v = select_keys(k, segments.keys), select_keys(v, segments.keys)
        options = self._window(sliding_window, causal)
        if q.shape[1] != k.shape[1]:
            if "enable_gqa" in self.takes:
                options["enable_gqa"] = True
            else:
                k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
        if "scale" in self.takes:
            options["scale"] = scaling
        else:
            q = q * (scaling * math.sqrt(q.shape[-1]))  # the function divides by the root of the head size
        lengths = (segments.ends_q, segments.ends_k, segments.longest_q, segments.longest_k)
        output: torch.Tensor = self.function(q.contiguous(), k.contiguous(), v.contiguous(), *lengths, **options)
        return output[None, ..., :size]

    def problem(self, device: torch.device, windows: bool) -> str | None:
        """Which tokens the function looks at beside those that packed rows need; None if they are the same.

        Read off to the bit: with queries and keys of 0 every token that is seen weighs the same, and values that are 1
        in one place each tell which tokens those are. A kernel that aligns the first query with the first key, or takes
        windows to be one token wider, is found by this and not by comparing rounded log-probabilities.
        """
        lengths, before = [4, 5, 3, 7], [-1, 0, 0, -1]
        segments = _segments(lengths, before, device)
        zeros = torch.zeros((1, 2, segments.tokens, 64), dtype=torch.bfloat16, device=device)
        values = torch.eye(segments.tokens, 64, dtype=torch.bfloat16, device=device)[None, None]
        for window in (None, 3) if windows else (None,):
            found = self.attend(zeros, zeros[:, :1], values, segments, 1.0, window)[0, :, :, : segments.tokens] != 0
            if not torch.equal(found, _expected(segments, window)[:, None].expand_as(found)):
                return f"torch {torch.__version__}'s kernel of variable length looks at other tokens (window {window})"
        return None

    def _window(self, sliding_window: int | None, causal: bool) -> dict[str, Any]:
        if not causal:
            return {}  # what every version does without being told
        # FlashAttention aligns the last query with the last key, which is how a completion sees its prompt. A window of
        # w tokens is the token itself and w - 1 before it.
        if "window_size" in self.takes:
            return {"window_size": (-1 if sliding_window is None else sliding_window - 1, 0)}
        if sliding_window is not None:
            raise NotImplementedError(
                f"torch {torch.__version__} has no sliding window in its kernel of variable length; 2.11 and later have"
            )
        return {"is_causal": True}


def check_window(sliding_window: int | None, causal: bool) -> None:
    """Raises NotImplementedError for a window that looks ahead too, as some encoders' do."""
    if sliding_window is not None and not causal:
        raise NotImplementedError("packed attention has no sliding window that looks in both directions")


def _of_one_head_size(*tensors: torch.Tensor) -> list[torch.Tensor]:
    """Head sizes filled up with zeros to the largest of them, in units that the kernel takes."""
    largest = max(x.shape[-1] for x in tensors)
    size = -(-largest // _HEAD_SIZE_UNIT) * _HEAD_SIZE_UNIT
    return [x if x.shape[-1] == size else functional.pad(x, (0, size - x.shape[-1])) for x in tensors]


def select_keys(values_THD: torch.Tensor, keys_K: torch.Tensor) -> torch.Tensor:
    """`values_THD[keys_K]`, whose backward neither sorts nor adds up in half precision: shape (K, H, D)."""
    selected: torch.Tensor = _SelectKeys.apply(values_THD, keys_K)
    return selected


class _SelectKeys(torch.autograd.Function):
    """A shared prompt's keys are selected once a completion: their gradients are added up in float32."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(keys)
        ctx.tokens = len(values)
        return values.index_select(0, keys)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        (keys,) = ctx.saved_tensors
        total = gradient.new_zeros((ctx.tokens, *gradient.shape[1:]), dtype=torch.float32)
        return total.index_add_(0, keys, gradient.float()).to(gradient.dtype), None


def _segments(lengths: list[int], before: list[int], device: torch.device) -> Segments:
    starts = torch.tensor([0, *lengths]).cumsum(0).tolist()
    spans = [torch.arange(start, end) for start, end in itertools.pairwise(starts)]
    keys = [torch.cat([spans[other], own]) if other >= 0 else own for own, other in zip(spans, before, strict=True)]
    ends = torch.tensor([0, *map(len, keys)]).cumsum(0)
    ends_q, ends_k, keys_K = (each.to(device) for each in (torch.tensor(starts).int(), ends.int(), torch.cat(keys)))
    return Segments(lengths, before, ends_q, ends_k, keys_K)


def _expected(segments: Segments, window: int | None) -> torch.Tensor:
    """Whether each of T tokens looks at each other one: shape (T, T)."""
    assert segments.keys is not None
    sees = torch.zeros((segments.tokens, segments.tokens), dtype=torch.bool, device=segments.keys.device)
    for start, end, first, last in zip(*_bounds(segments.ends_q), *_bounds(segments.ends_k), strict=True):
        sees[start:end, segments.keys[first:last]] = visible(end - start, last - first, window, sees.device)
    return sees


def _bounds(ends: torch.Tensor) -> tuple[list[int], list[int]]:
    return ends[:-1].tolist(), ends[1:].tolist()
