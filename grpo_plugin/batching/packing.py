"""Lays rows one after another in a single sequence, without padding, and finds each row's values in the result.

Owns the order of tokens, their positions, labels and segments. Everything is computed on the host from the rows'
lengths, which the plan knows, and is sent to the device in one copy, so that packing never waits for the device. Knows
nothing of attention, of TRL, of plans or of losses.

Two rows of one prompt p1 p2 p3, with completions a1 a2 and b1, share the prompt; a row of another prompt follows:

    token      p1 p2 | p3 a1 a2 | p3 b1 | q1 q2 c1
    position    0  1 |  2  3  4 |  2  3 |  0  1  2
    label       .  . | a1 a2  . | b1  . |  . c1  .
    segment     0    |  1       |  2    |  3
    sees before      |  0       |  0    |

The prompt's last token is computed for each completion, since the first token of a completion is sampled from it.

    index = PackingIndex.of(rows, families, prompt_width, completion_width)      on the host
    (on_device,) = to_device([index], device)                                    one copy, for any number of them
    packed = on_device.pack(input_ids)                                           what the model is called with

Legend: T tokens of the packed sequence, N rows, C the width of the completions, P segments, L tokens with a label,
K keys (the tokens that each segment sees, one segment after another).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from grpo_plugin.batching.plan import Ints, Rows
from packed_attention.segments import Segments, round_length, seen

IGNORED = -100  # the label of a token that is not scored, as in TRL and transformers

# Segments as the builder writes them: row, first position, end of positions, and the segment seen before (-1: none).
_Part = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Packed:
    """N rows as one sequence of T tokens: the model's inputs, and where each completion token's value is found."""

    inputs: dict[str, Any]
    tokens: int
    _place_L: torch.Tensor
    _target_L: torch.Tensor
    _shape: tuple[int, int]

    @property
    def segments(self) -> Segments:
        segments: Segments = self.inputs["segments"]
        return segments

    def spread(self, values_1T: torch.Tensor) -> torch.Tensor:
        """Per-token values of the packed sequence as N rows of completions, right-padded with 0: shape (N, C)."""
        rows, width = self._shape
        found = values_1T[0].index_select(0, self._place_L)
        return values_1T.new_zeros(rows * width).index_copy(0, self._target_L, found).view(rows, width)


@dataclass(frozen=True, slots=True)
class PackingIndex:
    """The index arrays of one packed sequence, on the host."""

    source_T: Ints  # where each token is in the flattened input_ids
    position_T: Ints
    label_T: Ints  # where each token's label is in the flattened input_ids; -1: none
    place_L: Ints
    target_L: Ints  # in the flattened (N, C)
    keys_K: Ints  # empty where no segment sees another
    lengths: list[int]
    before: list[int]
    shape: tuple[int, int]

    @classmethod
    def of(
        cls,
        rows: Rows,
        families: Sequence[Sequence[int]],
        prompt_width: int,
        completion_width: int,
        few_lengths: bool = False,
    ) -> PackingIndex:
        """Packs rows of prompts (left-padded) and completions (right-padded), of which the lengths are `rows`.

        `families` are rows with one prompt to compute once; all others come alone. A row without completion tokens is
        left out, unless all are. With `few_lengths`, a segment that no row sees fills the sequence to a `round_length`.
        """
        parts = _parts(rows, families) or [(0, 0, 1, -1)]
        row_P, begin_P, end_P, before_P = np.array(parts, dtype=np.int64).T
        length_P = end_P - begin_P
        start_P = np.cumsum(length_P) - length_P
        position_T = _ranges(begin_P, length_P)
        width = prompt_width + completion_width
        prompt_P, completion_P = rows.prompt_tokens_R[row_P], rows.completion_tokens_R[row_P]
        # A row's tokens lie side by side in its line of input_ids: the prompt ends where the completion begins.
        source_T = position_T + np.repeat(row_P * width + prompt_width - prompt_P, length_P)
        column_T = position_T - np.repeat(prompt_P - 1, length_P)  # of the token that is predicted here
        scored_T = (column_T >= 0) & (column_T < np.repeat(completion_P, length_P))
        place_L = np.flatnonzero(scored_T)
        target_L = (column_T + np.repeat(row_P * completion_width, length_P))[place_L]
        label_T = np.where(scored_T, source_T + 1, -1)
        keys_K = _keys(start_P, length_P, before_P)
        lengths, before = length_P.tolist(), before_P.tolist()
        tokens = len(source_T)
        if few_lengths and (dead := round_length(tokens) - tokens):
            source_T = np.concatenate([source_T, np.repeat(source_T[:1], dead)])
            position_T = np.concatenate([position_T, np.arange(dead)])
            label_T = np.concatenate([label_T, np.full(dead, -1)])
            keys_K = np.concatenate([keys_K, np.arange(tokens, tokens + dead)]) if len(keys_K) else keys_K
            lengths, before = [*lengths, dead], [*before, -1]
        shape = (len(rows.prompt_tokens_R), completion_width)
        return cls(source_T, position_T, label_T, place_L, target_L, keys_K, lengths, before, shape)

    def arrays(self) -> list[Ints]:
        """All that goes to the device."""
        ends = [np.cumsum([0, *lengths]) for lengths in (self.lengths, seen(self.lengths, self.before))]
        return [self.source_T, self.position_T, self.label_T, self.place_L, self.target_L, self.keys_K, *ends]


def _parts(rows: Rows, families: Sequence[Sequence[int]]) -> list[_Part]:
    """The segments, in order."""
    prompts, completions = rows.prompt_tokens_R.tolist(), rows.completion_tokens_R.tolist()
    parts: list[_Part] = []
    for family in families:
        alive = [row for row in family if completions[row]]
        prompt = prompts[family[0]]
        if len(alive) > 1 and prompt > 1:
            shared = len(parts)
            parts.append((alive[0], 0, prompt - 1, -1))
            parts += [(row, prompt - 1, prompt + completions[row], shared) for row in alive]
        else:
            parts += [(row, 0, prompts[row] + completions[row], -1) for row in alive]
    return parts


def _keys(start_P: Ints, length_P: Ints, before_P: Ints) -> Ints:
    """The tokens that each segment sees, one segment after another; empty where each sees itself alone."""
    if (before_P < 0).all():
        return np.zeros(0, dtype=np.int64)
    sees = before_P >= 0
    starts = np.stack([np.where(sees, start_P[before_P], 0), start_P], axis=1)
    lengths = np.stack([np.where(sees, length_P[before_P], 0), length_P], axis=1)
    return _ranges(starts.ravel(), lengths.ravel())


def _ranges(starts: Ints, lengths: Ints) -> Ints:
    """start, start + 1, …, for each start as many as its length."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1]) + np.repeat(starts - ends + lengths, lengths)


@dataclass(frozen=True, slots=True)
class DeviceIndex:
    """A `PackingIndex` on the device."""

    index: PackingIndex
    tensors: tuple[torch.Tensor, ...]

    def pack(self, input_ids: torch.Tensor) -> Packed:
        """The packed sequence of `input_ids`, shape (N, prompt width + C)."""
        source_T, position_T, label_T, place_L, target_L, keys_K, ends_q, ends_k = self.tensors
        flat = input_ids.reshape(-1)
        labels = flat.index_select(0, label_T.clamp(min=0)).masked_fill(label_T < 0, IGNORED)
        segments = Segments(
            self.index.lengths, self.index.before, ends_q.int(), ends_k.int(), keys_K if len(keys_K) else None
        )
        inputs = {
            "input_ids": flat.index_select(0, source_T)[None],
            "position_ids": position_T[None],
            "shift_labels": labels[None],
            # transformers takes a mask of four dimensions as it is (masking_utils) and makes none of its own; packed
            # attention does not read it.
            "attention_mask": torch.ones((1, 1, 1, 1), dtype=torch.bool, device=input_ids.device),
            "segments": segments,
        }
        return Packed(inputs, len(source_T), place_L, target_L, self.index.shape)


def to_device(indices: Sequence[PackingIndex], device: torch.device) -> list[DeviceIndex]:
    """Sends any number of indices to the device in one copy, which the host does not wait for."""
    arrays = [index.arrays() for index in indices]
    sizes = [len(array) for own in arrays for array in own]
    flat = torch.empty(sum(sizes), dtype=torch.int64, pin_memory=device.type == "cuda")
    np.concatenate([array for own in arrays for array in own], out=flat.numpy())
    parts = iter(flat.to(device, non_blocking=True).split(sizes))
    return [
        DeviceIndex(index, tuple(itertools.islice(parts, len(own)))) for index, own in zip(indices, arrays, strict=True)
    ]
