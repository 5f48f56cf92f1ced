"""`max_tokens_per_micro_batch: auto`: as many tokens as the device's memory has room for, learnt while training.

Nothing is run for it. The micro-batches of training are measured themselves, with their loss, their backward and
whatever shards the model, so that weights, gradients and random numbers are those of training without it, and no rank
calls a collective for it: what each has room for travels in the table that plans are made of, and the least counts.

The first optimizer step is not measured, since the optimizer allocates its state at its end. Then the budget may double
from step to step, so that no micro-batch is more than twice as large as one that was measured.

Owns the model of memory and its meter on CUDA. Knows nothing of plans or rows.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch

# Of the memory that is free at a step's start: the rest is for rows that need more than those measured, and for memory
# that the allocator holds in pieces too small to use.
SHARE = 0.8

_GROWTH = 2  # times the largest micro-batch that was measured


@dataclass(frozen=True, slots=True)
class Use:
    """What a micro-batch of so many tokens needed at most, beside what was in use when its step began."""

    tokens: int
    bytes: int


def most_tokens(uses: Iterable[Use], room_bytes: int) -> int:
    """The tokens that fit into `SHARE` of the room: at least 1, at most `_GROWTH` times the most that were measured.

    Bytes are taken to be a line over tokens, through the smallest and the largest micro-batch and not below any; where
    these are of about the same size, a line through 0, which is more careful.
    """
    by_size = sorted(uses, key=lambda use: use.tokens)
    least, most = by_size[0], by_size[-1]
    slope = 0.0
    if most.tokens >= 1.5 * least.tokens:
        slope = (most.bytes - least.bytes) / (most.tokens - least.tokens)
    if slope <= 0:
        slope, fixed = max(use.bytes / use.tokens for use in by_size), 0.0
    else:
        fixed = max(use.bytes - slope * use.tokens for use in by_size)
    grown = _GROWTH * most.tokens
    return grown if slope == 0 else max(1, min(grown, int((SHARE * room_bytes - fixed) / slope)))


class MemoryMeter(Protocol):
    """Measures a device's memory."""

    def begin_step(self) -> int:
        """Bytes that are free; what is in use now does not count until the next step."""

    def begin(self) -> None:
        """A micro-batch begins."""

    def end(self) -> int:
        """The most bytes that were in use since it began."""


class CudaMeter:
    """By the allocator's own numbers, which the host knows: nothing waits for the device. Resets its peak."""

    def __init__(self, device: torch.device):
        self._device = device
        self._before = 0

    def begin_step(self) -> int:
        free, _ = torch.cuda.mem_get_info(self._device)
        self._before = torch.cuda.memory_allocated(self._device)
        return free + torch.cuda.memory_reserved(self._device) - self._before

    def begin(self) -> None:
        torch.cuda.reset_peak_memory_stats(self._device)

    def end(self) -> int:
        return max(0, torch.cuda.max_memory_allocated(self._device) - self._before)


class AutoBudget:
    """Learns the budget of one rank from what its meter says of the micro-batches that it is told of."""

    def __init__(self, meter: MemoryMeter):
        self._meter = meter
        self._room_bytes = 0
        self._uses: dict[int, Use] = {}  # for each power of two of tokens, the one that needed most a token
        self.tokens = 0  # 0: not known yet

    def begin(self, first: bool) -> None:
        """A micro-batch begins, the first one of an optimizer step or a later one."""
        if first:
            self._room_bytes = self._meter.begin_step()
        self._meter.begin()

    def end(self, tokens: int) -> None:
        """The micro-batch, of so many tokens, has been launched forward and backward."""
        use = Use(tokens, self._meter.end())
        kept = self._uses.setdefault(tokens.bit_length(), use)
        if use.bytes * kept.tokens > kept.bytes * use.tokens:
            self._uses[tokens.bit_length()] = use
        self.tokens = most_tokens(self._uses.values(), self._room_bytes)


def meter_of(device: torch.device) -> MemoryMeter | None:
    """None where there is no device memory to measure."""
    return CudaMeter(device) if device.type == "cuda" else None
