"""What waits for one device, and which rows of it make the next batch.

Owns the order: whole groups in fair order of run and caller, the rows of those that are begun by length. Knows nothing
of devices, clocks or tasks.

Legend: a row is one sample of a caller's work, and its length is in tokens.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from reward_server.execution.fair_shares import FairShares

# Batches' worth of tokens whose rows are sorted together. More pads less and lets a newcomer wait longer.
_BEGUN_BATCHES = 8
# What a model call costs by itself, as a share of a full batch: padding is accepted only as far as it saves that.
_CALL_SHARE = 1 / 16


@dataclass(eq=False, slots=True)
class Row:
    """One sample of a caller's."""

    work: Work
    index: int
    sample: Any
    length: int


class Work:
    """One caller's samples, and their outputs as they come. `flow` is run and caller."""

    def __init__(self, samples: Sequence[Any], lengths: Sequence[int], flow: tuple[str, str], asked: float):
        self.rows = [
            Row(self, index, sample, max(1, length))
            for index, (sample, length) in enumerate(zip(samples, lengths, strict=True))
        ]
        self.flow = flow
        self.asked = asked
        self.tokens = sum(row.length for row in self.rows)
        self.outputs: list[Any] = [None] * len(self.rows)
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.compute_s = 0.0
        self._left = len(self.rows)

    @property
    def has_ended(self) -> bool:
        """Every row has its output, or the caller is gone."""
        return self.done.done()

    def settle(self, row: Row, output: Any) -> None:
        """Keeps a row's output; the last one ends the work."""
        self.outputs[row.index] = output
        self._left -= 1
        if not self._left and not self.has_ended:
            self.done.set_result(None)


class BatchQueue:
    """`waiting` groups and the rows of those that are `begun`."""

    def __init__(self, max_batch_tokens: int):
        self._max_batch_tokens = max_batch_tokens
        self._waiting: FairShares[Work] = FairShares()
        self._begun: dict[Work, int] = {}  # the oldest first, with the count of its rows in _rows
        self._rows: list[Row] = []  # the longest first
        self._begun_tokens = 0
        self._batches: list[list[Row]] = []  # made already, the next one last
        self.rows = 0
        """All that wait here."""
        self.tokens = 0

    def add(self, work: Work) -> None:
        self._waiting.add(work.flow, work, work.tokens)
        self._count(work.rows, 1)

    def add_batches(self, *batches: list[Row]) -> None:
        """Puts batches before everything else, to be computed as they are."""
        self._batches += reversed(batches)
        for batch in batches:
            self._count(batch, 1)

    def works(self) -> set[Work]:
        """Those of which something waits."""
        return {*self._begun, *self._waiting, *(row.work for batch in self._batches for row in batch)}

    def next_batch(self) -> list[Row]:
        """Takes out the rows to compute next: the oldest group's longest and its neighbours. There must be some."""
        batch = self._batches.pop() if self._batches else self._cut_batch()
        self._count(batch, -1)
        return batch

    def discard(self, work: Work) -> list[Row]:
        """Takes out what waits of a work, and returns it."""
        discarded = []
        if self._waiting.discard(work.flow, work):
            discarded += work.rows
        if self._begun.pop(work, None) is not None:
            discarded += _take_out(self._rows, work)
            self._begun_tokens -= sum(row.length for row in discarded)
        for batch in self._batches:
            discarded += _take_out(batch, work)
        self._batches = [batch for batch in self._batches if batch]
        self._count(discarded, -1)
        return discarded

    def _cut_batch(self) -> list[Row]:
        self._begin_groups()
        oldest = next(iter(self._begun))
        seed = next(index for index, row in enumerate(self._rows) if row.work is oldest)
        chosen = choose_batch([row.length for row in self._rows], seed, self._max_batch_tokens)
        batch = self._rows[chosen]
        del self._rows[chosen]
        for row in batch:
            self._begun[row.work] -= 1
            if not self._begun[row.work]:
                del self._begun[row.work]
        self._begun_tokens -= sum(row.length for row in batch)
        return batch

    def _begin_groups(self) -> None:
        while self._waiting and self._begun_tokens < _BEGUN_BATCHES * self._max_batch_tokens:
            work = self._waiting.pop()
            self._begun[work] = len(work.rows)
            self._begun_tokens += work.tokens
            self._rows += work.rows
        self._rows.sort(key=lambda row: -row.length)  # nearly sorted, and stable: the older group's row comes first

    def _count(self, rows: Sequence[Row], sign: int) -> None:
        self.rows += sign * len(rows)
        self.tokens += sign * sum(row.length for row in rows)


def choose_batch(lengths: Sequence[int], seed: int, max_batch_tokens: int) -> slice:
    """The rows to compute together with row `seed`, of rows sorted with the longest first.

    Grows from the seed to whichever side gets more tokens done for what the batch costs, padding and the call itself
    included, until that falls or the batch is full. A longer row joins only if the padding that it brings the others
    costs less than their own call would. A row longer than the limit goes alone.
    """
    call = max_batch_tokens * _CALL_SHARE
    start, stop, tokens = seed, seed + 1, lengths[seed]
    best = tokens / (tokens + call)

    def worth(first: int, last: int, tokens: int) -> float:
        cost = lengths[first] * (last - first)
        pads_too_much = (lengths[first] - lengths[start]) * (stop - start) > call
        return 0.0 if cost > max_batch_tokens or pads_too_much else tokens / (cost + call)

    while True:
        longer = worth(start - 1, stop, tokens + lengths[start - 1]) if start else 0.0
        shorter = worth(start, stop + 1, tokens + lengths[stop]) if stop < len(lengths) else 0.0
        if max(longer, shorter) < best or not max(longer, shorter):
            return slice(start, stop)
        best = max(longer, shorter)
        if shorter >= longer:
            stop += 1
            tokens += lengths[stop - 1]
        else:
            start -= 1
            tokens += lengths[start]


def _take_out(rows: list[Row], work: Work) -> list[Row]:
    taken = [row for row in rows if row.work is work]
    rows[:] = [row for row in rows if row.work is not work]
    return taken
