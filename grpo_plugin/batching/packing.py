"""Rows laid one after another, without padding, and the attention that keeps them apart.

Owns the layout of a packed forward (tokens, positions, labels, who may look at whom) and the attention function that
reads it. Knows nothing of TRL, of plans or of losses.

Two rows of one prompt p1 p2 p3, with completions a1 a2 and b1, share it; a row of another prompt follows:

    token      p1 p2 | p3 a1 a2 | p3 b1 | q1 q2 c1
    position    0  1 |  2  3  4 |  2  3 |  0  1  2
    label       .  . | a1 a2  . | b1  . |  . c1  .
    segment     0    |  1       |  2    |  3
    sees before      |  0       |  0    |

The prompt's last token is computed for each completion, since it is what the first token is sampled from.

Attention is registered in transformers' AttentionInterface over the implementations that it stands in for, and hands on
to them whatever is not packed. On CUDA it is torch's own varlen kernel (or the flash attention that the model was
loaded with), elsewhere SDPA a segment, which computes no pair of tokens of different rows.

Legend: T tokens of the packed sequence, N rows, C the width of the completions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn import functional
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

varlen_attn: Any
try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # torch before 2.10
    varlen_attn = None

IGNORED = -100  # the label of a token that is not scored, as in TRL and transformers


@dataclass(frozen=True, slots=True)
class Segment:
    """Tokens [start, end), which look at themselves causally and, if it is given, at all of the segment `before`."""

    start: int
    end: int
    before: tuple[int, int] | None = None

    @property
    def seen(self) -> int:
        """How many tokens the last one looks at."""
        return self.end - self.start + (self.before[1] - self.before[0] if self.before else 0)


@dataclass(frozen=True, slots=True)
class Segments:
    """Who may look at whom, as the model's attention layers are handed it."""

    parts: tuple[Segment, ...]
    _kernel_inputs: dict[torch.device, _KernelInputs] = field(default_factory=dict, repr=False)

    def kernel_inputs(self, device: torch.device) -> _KernelInputs:
        """The same for kernels of variable length; made once, for all layers."""
        if device not in self._kernel_inputs:
            self._kernel_inputs[device] = _KernelInputs.of(self.parts, device)
        return self._kernel_inputs[device]


@dataclass(frozen=True, slots=True)
class _KernelInputs:
    """Cumulative lengths of queries and keys, and which keys: None where they are those of the queries."""

    ends_q: torch.Tensor
    ends_k: torch.Tensor
    longest_q: int
    longest_k: int
    keys: torch.Tensor | None

    @classmethod
    def of(cls, parts: Sequence[Segment], device: torch.device) -> _KernelInputs:
        queries, seen = [part.end - part.start for part in parts], [part.seen for part in parts]
        keys = None
        if any(part.before for part in parts):
            ranges = [span for part in parts for span in (part.before, (part.start, part.end)) if span]
            keys = torch.cat([torch.arange(*span) for span in ranges]).to(device)
        return cls(_ends(queries, device), _ends(seen, device), max(queries), max(seen), keys)


def _ends(lengths: Sequence[int], device: torch.device) -> torch.Tensor:
    return functional.pad(torch.tensor(lengths).cumsum(0), (1, 0)).to(device=device, dtype=torch.int32)


@dataclass(frozen=True, slots=True)
class Packed:
    """N rows as one sequence of T tokens, and where each completion token's value is found in it."""

    inputs: dict[str, Any]
    tokens: int
    _place: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    _shape: tuple[int, int]

    def spread(self, values_1T: torch.Tensor) -> torch.Tensor:
        """Per-token values of the packed sequence as N rows of completions, right-padded with 0: shape (N, C)."""
        row, column, place = self._place
        return values_1T.new_zeros(self._shape).index_put((row, column), values_1T[0, place])


def pack(
    input_ids: torch.Tensor, attention_mask: torch.Tensor, completion_width: int, families: Sequence[Sequence[int]]
) -> Packed:
    """Packs rows of prompt (left-padded) and completion (right-padded, `completion_width` wide).

    `families` are rows with one prompt to compute once; all others come alone. A row without completion tokens is left
    out, unless all are.
    """
    ids, mask = input_ids.cpu(), attention_mask.cpu().bool()
    width = ids.shape[1] - completion_width
    builder = _Builder()
    for family in families:
        prompt = ids[family[0], :width][mask[family[0], :width]]
        completions = [(row, ids[row, width:][mask[row, width:]]) for row in family]
        builder.add(prompt, [(row, completion) for row, completion in completions if len(completion)])
    if not builder.parts:
        builder.add(ids[0, :1], [(0, ids[0, :0])])
    return builder.packed(input_ids.device, (len(ids), completion_width))


class _Builder:
    """Appends segments."""

    def __init__(self) -> None:
        self.parts: list[Segment] = []
        self._tokens: list[torch.Tensor] = []
        self._labels: list[torch.Tensor] = []
        self._positions: list[torch.Tensor] = []
        self._places: list[tuple[int, int, int]] = []  # row, tokens, where the first one's value is
        self._length = 0

    def add(self, prompt: torch.Tensor, completions: list[tuple[int, torch.Tensor]]) -> None:
        if len(completions) > 1 and len(prompt) > 1:
            shared = self._append(prompt[:-1], prompt[:0], 0, None)
            for row, completion in completions:
                self._append(prompt[-1:], completion, len(prompt) - 1, shared, row)
        else:
            for row, completion in completions:
                self._append(prompt, completion, 0, None, row)

    def _append(
        self,
        prompt: torch.Tensor,
        completion: torch.Tensor,
        position: int,
        before: tuple[int, int] | None,
        row: int | None = None,
    ) -> tuple[int, int]:
        start, length = self._length, len(prompt) + len(completion)
        labels = torch.full((length,), IGNORED)
        if row is not None:
            labels[len(prompt) - 1 : length - 1] = completion
            self._places.append((row, len(completion), start + len(prompt) - 1))
        self.parts.append(Segment(start, start + length, before))
        self._tokens += [prompt, completion]
        self._labels.append(labels)
        self._positions.append(torch.arange(position, position + length))
        self._length += length
        return start, start + length

    def packed(self, device: torch.device, shape: tuple[int, int]) -> Packed:
        rows = torch.cat([torch.full((count,), row) for row, count, _ in self._places])
        columns = torch.cat([torch.arange(count) for _, count, _ in self._places])
        places = torch.cat([torch.arange(first, first + count) for _, count, first in self._places])
        inputs = {
            "input_ids": torch.cat(self._tokens)[None].to(device),
            "position_ids": torch.cat(self._positions)[None].to(device),
            "shift_labels": torch.cat(self._labels)[None].to(device),
            # A mask of four dimensions is taken for ready by transformers (masking_utils), which then makes none; the
            # attention below does not read it.
            "attention_mask": torch.ones((1, 1, 1, 1), dtype=torch.bool, device=device),
            "segments": Segments(tuple(self.parts)),
        }
        return Packed(inputs, self._length, (rows.to(device), columns.to(device), places.to(device)), shape)


# ------------------------------------------------------------------------------------------------------------ attention

STANDS_IN_FOR = ("sdpa", "flash_attention_2", "flash_attention_3")
_UNSUPPORTED = ("softcap", "s_aux", "position_bias", "cache", "head_mask")


def register() -> None:
    """Makes the attention implementations that it stands in for take `segments`. Again does nothing."""
    for name in STANDS_IN_FOR:
        original = ALL_ATTENTION_FUNCTIONS[name]
        if not isinstance(original, _Attention):
            ALL_ATTENTION_FUNCTIONS.register(name, _Attention(name, original))


class _Attention:
    """An attention function of transformers which takes packed rows too."""

    def __init__(self, name: str, original: Any):
        self._name = name
        self._original = original

    def __call__(
        self, module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, Any]:
        segments: Segments | None = kwargs.pop("segments", None)
        if segments is None:
            return self._original(module, query, key, value, attention_mask, **kwargs)
        for name in _UNSUPPORTED:
            if self._name == "sdpa" and kwargs.get(name) is not None:
                raise NotImplementedError(f"packed attention has no {name}")
        if self._name == "sdpa":
            return _attend(query, key, value, segments, **kwargs), None
        return self._flash(module, query, key, value, segments, **kwargs)

    def _flash(
        self, module: Any, query: Any, key: Any, value: Any, segments: Segments, **kwargs: Any
    ) -> tuple[torch.Tensor, Any]:
        inputs = segments.kernel_inputs(query.device)
        key, value = (x if inputs.keys is None else x.index_select(2, inputs.keys) for x in (key, value))
        lengths = {
            "cu_seq_lens_q": inputs.ends_q,
            "cu_seq_lens_k": inputs.ends_k,
            "max_length_q": inputs.longest_q,
            "max_length_k": inputs.longest_k,
        }
        return self._original(module, query, key, value, None, **kwargs, **lengths)


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    segments: Segments,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> torch.Tensor:
    """Attention of packed rows. Takes (1, heads, T, head size), returns (1, T, heads, head size)."""
    half = (torch.float16, torch.bfloat16)
    if query.is_cuda and varlen_attn is not None and not dropout and value.dtype in half:
        return _attend_varlen(query.to(value.dtype), key.to(value.dtype), value, segments, scaling, sliding_window)
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    # Split, not sliced: the backward of a slice fills a tensor as long as the whole.
    lengths = [part.end - part.start for part in segments.parts]
    queries, keys, values = (x.split(lengths, dim=2) for x in (query, key, value))
    number = {(part.start, part.end): index for index, part in enumerate(segments.parts)}
    outputs = []
    for index, part in enumerate(segments.parts):
        k, v = keys[index], values[index]
        if part.before is not None:
            prefix = number[part.before]
            k, v = torch.cat([keys[prefix], k], dim=2), torch.cat([values[prefix], v], dim=2)
        mask = _mask(part, sliding_window, query.device)
        outputs.append(
            functional.scaled_dot_product_attention(
                queries[index], k, v, attn_mask=mask, dropout_p=dropout, is_causal=mask is None, scale=scaling
            )
        )
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous()


def _mask(part: Segment, sliding_window: int | None, device: torch.device) -> torch.Tensor | None:
    """Which of the tokens that a segment sees each of its own may look at; None for plain causality."""
    windowed = sliding_window is not None and part.seen > sliding_window
    if part.before is None and not windowed:
        return None
    own, seen = part.end - part.start, part.seen
    distance = torch.arange(seen - own, seen, device=device)[:, None] - torch.arange(seen, device=device)[None, :]
    return (distance >= 0) & (distance < sliding_window) if windowed and sliding_window else distance >= 0


def _attend_varlen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    segments: Segments,
    scaling: float | None,
    sliding_window: int | None,
) -> torch.Tensor:
    inputs = segments.kernel_inputs(query.device)
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    if inputs.keys is not None:
        k, v = k[inputs.keys], v[inputs.keys]
    output: torch.Tensor = varlen_attn(
        q.contiguous(),
        k.contiguous(),
        v.contiguous(),
        inputs.ends_q,
        inputs.ends_k,
        inputs.longest_q,
        inputs.longest_k,
        scale=scaling,
        # Flash attention lays the last query on the last key, which is how a completion sees its prompt.
        window_size=(-1 if sliding_window is None else sliding_window - 1, 0),
        enable_gqa=q.shape[1] != k.shape[1],
    )
    return output[None]
