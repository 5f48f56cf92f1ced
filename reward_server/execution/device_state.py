"""One device as the batcher feeds it: its queue, the batch that it computes, and the one that is started behind that.

Owns when a batch is started ahead of its turn, and how it is taken back. Knows nothing of callers or of time limits.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass, field

from reward_server.execution.batch_device import Device, Job
from reward_server.execution.batch_queue import BatchQueue, Row


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows that were started on a device together."""

    rows: list[Row]
    job: Job

    def abandon(self) -> None:
        """Nobody waits for it any more."""
        self.job.take_back()
        self.job.done.cancel()


@dataclass(slots=True)
class DeviceState:
    """One device, its queue, the batch that it computes and the one that is started behind that."""

    device: Device
    queue: BatchQueue
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    current: Batch | None = None
    ahead: Batch | None = None
    is_overdue: bool = False
    free_since: float = 0.0

    @property
    def rows(self) -> list[Row]:
        """The rows that are on the device."""
        return [row for batch in (self.current, self.ahead) if batch is not None for row in batch.rows]

    def load(self) -> float:
        """The tokens that the device has to compute before it is free."""
        return math.inf if self.is_overdue else self.queue.tokens + sum(row.length for row in self.rows)

    def started(self, rows: list[Row]) -> Batch:
        return Batch(rows, self.device.start([row.sample for row in rows]))

    def start_ahead(self) -> None:
        """Starts the next batch behind the one that is computed, if waiting would not make it larger."""
        is_next = self.current is not None and self.ahead is None and not self.is_overdue
        if is_next and self.queue.has_full_batch:
            self.ahead = self.started(self.queue.next_batch())

    def taken_back(self) -> list[Row]:
        """The rows of the batch that was started ahead, if the device has not begun it: it will not compute them."""
        batch = self.ahead
        if batch is None or not batch.job.take_back():
            return []
        batch.abandon()
        self.ahead = None
        return batch.rows
