"""Whether a prompt is computed once for its rows: an estimate of the time and of the memory that this takes.

Of n rows with a prompt of p + 1 tokens (its last token begins each completion) sharing saves n - 1 times p tokens and
their attention. It costs copies: each attention layer lays the keys and values that a completion sees behind one
another, its prompt's and its own, forward and backward, and keeps them for the backward pass. A completion's attention
to its prompt is the same either way. Both are counted in tokens, of which one costs 1:

    a row gains             p + attention p² - keys (p + own)        own: its completion and the prompt's last token
    a prompt has a price    p + attention p² + keys p                it is still computed once, and its keys copied

A row that gains nothing, since it is long and its prompt short, is computed alone; the others share if together they
gain more than the price. So more rows never make sharing dearer, and a plan that let them share still does when rows
of its units meet in one micro-batch. Time and memory each have to gain.

Legend: M rows; the first axis of a gain is time, memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

# Costs are counted in whole numbers of this part of a token, so that their sums are exact and alike on every processor.
PARTS_OF_A_TOKEN = 256

# How often each key and value is moved, forward and backward: read and written; then its gradient is read, written and
# read in float32, and added to what it is a copy of, which is read, written and rounded (float32 counts twice).
_MOVES = 16

# Operations of a matrix product in the time that one byte takes to move. An H100 does 400 TFLOP/s of bfloat16 where
# 2.5 TB/s move; a CPU's core does some 50 GFLOP/s where 10 GB/s move.
_OPERATIONS_A_BYTE = {"cpu": 5}
_OPERATIONS_A_BYTE_GPU = 160


@dataclass(frozen=True, slots=True)
class KeyCost:
    """What copying one token's keys and values in every layer takes, as a part of what computing a token takes."""

    time: float
    memory: float

    @classmethod
    def of(cls, hidden: int, intermediate: int, keys: int, device: str) -> KeyCost:
        """For layers of these widths; `keys` is the width of all key heads, and that of all value heads.

        A layer does 6 operations a weight and token, forward and backward, and has 4h² + 3hi weights. It keeps about 8
        values of the hidden width, 4 of the intermediate one, and the keys and values.
        """
        bytes_a_value = 4 if device == "cpu" else 2
        moved = _MOVES * 2 * keys * bytes_a_value * _OPERATIONS_A_BYTE.get(device, _OPERATIONS_A_BYTE_GPU)
        kept = 8 * hidden + 4 * intermediate + 2 * keys
        return cls(moved / (6 * (4 * hidden**2 + 3 * hidden * intermediate)), 2 * keys / kept)


# About that of models of 0.5 to 8 billion parameters on a GPU.
TYPICAL = KeyCost(time=0.02, memory=0.01)


@dataclass(frozen=True, slots=True)
class Gains:
    """What rows gain, and the price of each one's prompt, in whole parts of a token: shape (2, M)."""

    row_2M: Ints
    price_2M: Ints

    @classmethod
    def of(cls, prompt_tokens_M: Ints, completion_tokens_M: Ints, attention: float, keys: KeyCost) -> Gains:
        prefix, own = prompt_tokens_M - 1, completion_tokens_M + 1
        computed, copied = prefix + attention * prefix**2, prefix + own
        row = np.stack([_whole(computed - keys.time * copied), _whole(prefix - keys.memory * copied)])
        price = np.stack([_whole(computed + keys.time * prefix), _whole(prefix + keys.memory * prefix)])
        return cls(row, price)

    @property
    def joins_M(self) -> npt.NDArray[np.bool_]:
        """Which rows gain at all."""
        return np.asarray((self.row_2M > 0).all(axis=0))

    def worth(self, group_M: Ints) -> npt.NDArray[np.bool_]:
        """For each row, whether the rows with the same number in `group_M`, of one prompt, gain more than its price."""
        totals = np.stack([np.bincount(group_M, weights=row).astype(np.int64)[group_M] for row in self.row_2M])
        return np.asarray((totals > self.price_2M).all(axis=0))


def _whole(cost: Any) -> Ints:
    return np.rint(cost * PARTS_OF_A_TOKEN).astype(np.int64)
