"""The queue of one device, and which of its rows make the next batch.

Owns the order: whole groups wait in fair order of run and caller; the rows of started groups are sorted by length where
a batch is padded to its longest row, and else stay in their order. Knows nothing of devices, clocks or tasks.

Legend: a row is one sample of a work item (one caller's samples), and its length is in tokens.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from reward_server.execution.fair_shares import FairShares

# How many full batches' tokens are started, so that their rows are sorted together. A larger number means less padding
# and a longer wait for a group that has just arrived.
_STARTED_BATCHES = 8
# The fixed cost of a model call, as a share of a full batch's cost. Padding is accepted only where it saves a call.
_CALL_COST = 1 / 16
# Rows without padding meet padding once, as one tensor of hidden states that the model's head reads: it may be as long
# as this many full batches.
_MOST_SPREAD = 8


@dataclass(eq=False, slots=True)
class Row:
    """One sample of a work item."""

    work: WorkItem
    index: int
    sample: Any
    length: int


class WorkItem:
    """One caller's samples, and their outputs as they arrive. `flow` is run and caller."""

    def __init__(
        self,
        samples: Sequence[Any],
        lengths: Sequence[int],
        flow: tuple[str, str],
        asked: float,
        arrived: float | None = None,
    ):
        """`asked` is when its samples were there, and `arrived` when its caller came, if that was earlier."""
        self.rows = [
            Row(self, index, sample, max(1, length))
            for index, (sample, length) in enumerate(zip(samples, lengths, strict=True))
        ]
        self.flow = flow
        self.asked = asked
        self.arrived = asked if arrived is None else arrived
        self.tokens = sum(row.length for row in self.rows)
        self.outputs: list[Any] = [None] * len(self.rows)
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.compute_s = 0.0
        self._left = len(self.rows)

    @property
    def has_ended(self) -> bool:
        """Whether every row has its output, or the caller has left."""
        return self.done.done()

    def settle(self, row: Row, output: Any) -> None:
        """Stores a row's output. The last one completes the work item."""
        self.outputs[row.index] = output
        self._left -= 1
        if not self._left and not self.has_ended:
            self.done.set_result(None)


class BatchQueue:
    """Groups that wait, and the rows of groups that are started."""

    def __init__(self, max_batch_tokens: int, pads: bool = True):
        """`pads` says whether rows are padded to the longest of their batch, and `max_batch_tokens` counts that."""
        self._max_batch_tokens = max_batch_tokens
        self._pads = pads
        self._most_started = max_batch_tokens * (_STARTED_BATCHES if pads else 1)
        self._waiting: FairShares[WorkItem] = FairShares()
        self._started: dict[WorkItem, int] = {}  # the oldest first, with the number of its rows in _rows
        self._rows: list[Row] = []  # the longest first, or in order
        self._started_tokens = 0
        self._batches: list[list[Row]] = []  # batches that are cut already, the next one last
        self.rows = 0
        """The number of all rows in this queue."""
        self.tokens = 0

    def add(self, work: WorkItem) -> None:
        self._waiting.add(work.flow, work, work.tokens)
        self._count(work.rows, 1)

    def add_batches(self, *batches: list[Row]) -> None:
        """Puts batches before everything else; they are computed as they are."""
        self._batches += reversed(batches)
        for batch in batches:
            self._count(batch, 1)

    def put_back(self, rows: list[Row]) -> None:
        """Puts the rows of a batch that was not computed back to where they came from, before everything else."""
        counts = Counter(row.work for row in rows)
        self._started = {work: self._started.get(work, 0) + counts[work] for work in {**counts, **self._started}}
        self._rows = [*rows, *self._rows]
        self._started_tokens += sum(row.length for row in rows)
        self._count(rows, 1)

    @property
    def has_full_batch(self) -> bool:
        """Whether waiting for more rows would not make the next batch larger."""
        return bool(self._batches) or self.tokens >= self._max_batch_tokens

    def items(self) -> set[WorkItem]:
        """The work items that have rows in this queue."""
        return {*self._started, *self._waiting, *(row.work for batch in self._batches for row in batch)}

    def next_batch(self) -> list[Row]:
        """Removes and returns the rows to compute next. The queue must not be empty.

        Padded rows: the oldest group's longest row and its neighbours in length. Else: the rows of the oldest groups.
        """
        batch = self._batches.pop() if self._batches else self._cut_batch()
        self._count(batch, -1)
        return batch

    def discard(self, work: WorkItem) -> list[Row]:
        """Removes the rows of a work item, and returns them."""
        discarded = []
        if self._waiting.discard(work.flow, work):
            discarded += work.rows
        if self._started.pop(work, None) is not None:
            discarded += _remove(self._rows, work)
            self._started_tokens -= sum(row.length for row in discarded)
        for batch in self._batches:
            discarded += _remove(batch, work)
        self._batches = [batch for batch in self._batches if batch]
        self._count(discarded, -1)
        return discarded

    def _cut_batch(self) -> list[Row]:
        self._start_groups()
        lengths = [row.length for row in self._rows]
        if self._pads:
            oldest = next(iter(self._started))
            seed = next(index for index, row in enumerate(self._rows) if row.work is oldest)
            chosen = choose_batch(lengths, seed, self._max_batch_tokens)
        else:
            chosen = slice(0, first_rows(lengths, self._max_batch_tokens))
        batch = self._rows[chosen]
        del self._rows[chosen]
        for row in batch:
            self._started[row.work] -= 1
            if not self._started[row.work]:
                del self._started[row.work]
        self._started_tokens -= sum(row.length for row in batch)
        return batch

    def _start_groups(self) -> None:
        while self._waiting and self._started_tokens < self._most_started:
            work = self._waiting.pop()
            self._started[work] = len(work.rows)
            self._started_tokens += work.tokens
            self._rows += work.rows
        if self._pads:
            self._rows.sort(key=lambda row: -row.length)  # a stable sort: an older group's row comes first

    def _count(self, rows: Sequence[Row], sign: int) -> None:
        self.rows += sign * len(rows)
        self.tokens += sign * sum(row.length for row in rows)


def choose_batch(lengths: Sequence[int], seed: int, max_batch_tokens: int) -> slice:
    """Chooses the rows to compute together with row `seed`. The rows are sorted with the longest first.

    The batch grows from the seed towards the side that yields more tokens for the batch's cost, which includes padding
    and the call itself, until that ratio falls or the batch is full. A longer row joins only if the padding that it
    adds to the others costs less than a call of their own. A row longer than the limit is computed alone.
    """
    call_cost = max_batch_tokens * _CALL_COST
    start, stop, tokens = seed, seed + 1, lengths[seed]
    best = tokens / (tokens + call_cost)

    def tokens_per_cost(first: int, last: int, tokens: int) -> float:
        cost = lengths[first] * (last - first)
        pads_too_much = (lengths[first] - lengths[start]) * (stop - start) > call_cost
        return 0.0 if cost > max_batch_tokens or pads_too_much else tokens / (cost + call_cost)

    while True:
        longer = tokens_per_cost(start - 1, stop, tokens + lengths[start - 1]) if start else 0.0
        shorter = tokens_per_cost(start, stop + 1, tokens + lengths[stop]) if stop < len(lengths) else 0.0
        if max(longer, shorter) < best or not max(longer, shorter):
            return slice(start, stop)
        best = max(longer, shorter)
        if shorter >= longer:
            stop += 1
            tokens += lengths[stop - 1]
        else:
            start -= 1
            tokens += lengths[start]


def first_rows(lengths: Sequence[int], max_batch_tokens: int) -> int:
    """How many rows make a batch without padding, the first ones first: as many as fit, and one at least."""
    tokens = longest = 0
    for count, length in enumerate(lengths):
        tokens, longest = tokens + length, max(longest, length)
        if count and (tokens > max_batch_tokens or longest * (count + 1) > _MOST_SPREAD * max_batch_tokens):
            return count
    return len(lengths)


def _remove(rows: list[Row], work: WorkItem) -> list[Row]:
    taken = [row for row in rows if row.work is work]
    rows[:] = [row for row in rows if row.work is not work]
    return taken
