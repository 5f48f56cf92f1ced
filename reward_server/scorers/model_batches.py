"""Rows of token ids as the tensors of one forward pass: padded on the right, and packed as well if they are to be.

Owns how a batch is built on the host and sent to a device in one copy that the host does not wait for, and how outputs
come back. Knows nothing of models. It is imported where a model is loaded: it needs torch.

Legend: N rows, L their padded length, T tokens without padding (and with a few more, so that few lengths occur),
P segments of the packed sequence, K positions that are read.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from packed_attention.segments import Segments, round_length

Ids = Sequence[Sequence[int]]


@dataclass(frozen=True, slots=True)
class DeviceBatch:
    """A batch on a device."""

    ids_NL: torch.Tensor
    mask_NL: torch.Tensor
    wanted_K: torch.Tensor
    """The positions that are read, in the flattened (N, L)."""
    packed: PackedRows | None


@dataclass(frozen=True, slots=True)
class PackedRows:
    """The rows of a batch as one sequence, for the layers of a model."""

    inputs: dict[str, Any]
    place_T: torch.Tensor
    tokens: int
    shape: tuple[int, int]

    def unpacked(self, hidden_1TH: torch.Tensor) -> torch.Tensor:
        """The hidden states as padded rows, 0 where there is padding: shape (N, L, H)."""
        rows, length = self.shape
        hidden = hidden_1TH[0, : self.tokens]
        padded = hidden.new_zeros((rows * length, hidden.shape[-1]))
        return padded.index_copy_(0, self.place_T[: self.tokens], hidden).view(rows, length, -1)


@dataclass(frozen=True, slots=True)
class HostBatch:
    """A batch on the host, ready to be sent."""

    lengths: list[int]
    """The tokens of each row."""
    flat: torch.Tensor
    sizes: list[int]
    shape: tuple[int, int]
    segments: list[int]
    """The lengths of the packed segments; empty for rows that are padded only."""
    tokens: int

    @classmethod
    def of(
        cls,
        ids: Ids,
        wanted: Sequence[Sequence[int]],
        length: int,
        pad_id: int,
        *,
        packed: bool,
        few_shapes: bool,
        pinned: bool,
    ) -> HostBatch:
        """Rows padded to `length`. `wanted` are positions of each row, or nothing.

        With `few_shapes`, a segment that no row sees fills the packed sequence to a `round_length`.
        """
        lengths_N = np.array([len(row) for row in ids])
        mask_NL = np.arange(length) < lengths_N[:, None]
        place_T = np.flatnonzero(mask_NL)
        ids_NL = np.full(len(ids) * length, pad_id, dtype=np.int64)
        ids_NL[place_T] = np.fromiter(itertools.chain.from_iterable(ids), np.int64, len(place_T))
        wanted_K = np.array([row * length + at for row, places in enumerate(wanted) for at in places], dtype=np.int64)
        arrays, segments, tokens = [ids_NL, mask_NL.ravel().astype(np.int64), wanted_K], [], len(place_T)
        if packed:
            dead = round_length(tokens) - tokens if few_shapes else 0
            segments = [*lengths_N.tolist(), *([dead] if dead else [])]
            arrays += [np.concatenate([place_T, np.zeros(dead, dtype=np.int64)]), np.cumsum([0, *segments])]
        flat = torch.empty(sum(map(len, arrays)), dtype=torch.int64, pin_memory=pinned)
        np.concatenate(arrays, out=flat.numpy())
        return cls(lengths_N.tolist(), flat, [len(array) for array in arrays], (len(ids), length), segments, tokens)

    def to(self, device: torch.device, first_position: int = 0) -> DeviceBatch:
        """Sends it. Rows' positions in the packed sequence count from `first_position`."""
        ids, mask, wanted_K, *packing = self.flat.to(device, non_blocking=True).split(self.sizes)
        packed = None
        if packing:
            place_T, ends = packing
            segments = Segments(
                self.segments, [-1] * len(self.segments), ends.int(), ends.int(), None, any_direction=True
            )
            inputs = {
                "input_ids": ids[place_T][None],
                "position_ids": (place_T % self.shape[1] + first_position)[None],
                # transformers takes a mask of four dimensions as it is (masking_utils) and makes none of its own;
                # packed attention does not read it.
                "attention_mask": torch.ones((1, 1, 1, 1), dtype=torch.bool, device=device),
                "use_cache": False,
                "segments": segments,
            }
            packed = PackedRows(inputs, place_T, self.tokens, self.shape)
        return DeviceBatch(ids.view(self.shape), mask.view(self.shape), wanted_K, packed)


def few_lengths(tokens: int) -> int:
    """The next of 16 lengths between two powers of two from 128 on, and of multiples of 8 below: at most 1/16 more."""
    multiple = max(8, 1 << max(0, (tokens - 1).bit_length() - 5))
    return -(-tokens // multiple) * multiple


class Outputs:
    """What a forward pass gives, on its way to the host."""

    def __init__(self, values: torch.Tensor):
        self._values, self._is_there = values, None
        if values.is_cuda:
            self._values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            self._is_there = torch.cuda.Event(blocking=True)
            self._is_there.record(torch.cuda.current_stream(values.device))

    def read(self) -> torch.Tensor:
        """The values, once the device has computed them."""
        if self._is_there is not None:
            self._is_there.synchronize()
        return self._values.cpu()
