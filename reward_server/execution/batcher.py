"""Forms model batches from the samples of many callers, and gives each caller its own outputs.

Owns one queue for each device, and one task for each device that feeds it. Knows nothing of gRPC, scorers or threads:
it is given devices that compute batches in their order (`batch_device`).

    batcher = Batcher([gpu_0, gpu_1], max_batch_tokens=16384, limit_s=60)
    batcher.start()
    answer = await batcher.submit(samples, lengths, flow=("run 7", "rank 3"))
    await batcher.close()

Batches are formed as soon as a device is free; the batcher never waits for more work to arrive. While a device is busy,
batches grow until one is full. A full one is started behind the one that is computed, so that it is ready before that
one ends. What a device computes next:

    waiting: whole groups, in fair order of run and caller   (`fair_shares`)
      -> started: groups of a few batches' tokens, their rows sorted by length
           -> a batch: the oldest group's longest row, and its neighbours in length as long as they pay

So rows of similar length are computed together, and groups finish in the order in which they were started. If a model
needs no padding, a batch is the rows of the oldest groups. A device whose own queue is empty takes a batch from the
fullest other queue, or the one that another device has not begun.

The cost of a batch in tokens is its longest row × its number of rows, or without padding the sum of its rows. A batch
that raises is split in halves until the row at fault is alone. A batch that exceeds the time limit fails; its device
gets no other batch until that one has returned, if it ever does, and the other devices take over its queue.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from reward_server.execution.batch_device import Device
from reward_server.execution.batch_queue import BatchQueue, Row, WorkItem
from reward_server.execution.device_state import Batch, DeviceState


class BatchTimeoutError(TimeoutError):
    """A row's batch exceeded the limit, or no device became free within it since all have batches that exceeded it."""


class BatcherClosedError(RuntimeError):
    """The batcher was closed before this work was done."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The outputs of one caller's samples, in their order: what the device returned, or the exception that it raised.

    `compute_s` is the time of the batches that held the samples, and `queued_s` is the rest of the time.
    """

    outputs: list[Any]
    queued_s: float = 0.0
    compute_s: float = 0.0


@dataclass(slots=True)
class BatchStats:
    """Counters since the start. A batch is one call of the model; a row is one sample in it."""

    batches: int = 0
    rows: int = 0
    tokens: int = 0
    """Tokens of these rows, without padding."""
    padded_tokens: int = 0
    """Tokens that were computed: longest row × rows, summed over the batches; without padding the same as `tokens`."""
    busy_s: float = 0.0
    """Seconds that devices spent computing, summed over the devices."""
    idle_s: float = 0.0
    """Seconds that devices did not compute while samples waited for them, summed over the devices."""
    dropped: int = 0
    """Rows that never reached the model, since their caller had left."""
    failed: int = 0
    """Rows that ended without an output."""
    halved: int = 0
    """Batches that raised and were retried in halves."""
    overdue: int = 0
    """Batches that exceeded the limit."""

    @property
    def fill(self) -> float:
        """The share of the computed tokens that is not padding; 1 before the first batch."""
        return self.tokens / self.padded_tokens if self.padded_tokens else 1.0

    @property
    def idle(self) -> float:
        """The share of the time with work in which devices did not compute; 0 before the first batch."""
        return self.idle_s / (self.idle_s + self.busy_s) if self.busy_s else 0.0

    def count(self, rows: Sequence[Row], pads: bool, idle_s: float, busy_s: float) -> None:
        """Counts a batch that a device was given."""
        tokens = sum(row.length for row in rows)
        self.batches += 1
        self.rows += len(rows)
        self.tokens += tokens
        self.padded_tokens += max(row.length for row in rows) * len(rows) if pads else tokens
        self.idle_s += idle_s
        self.busy_s += busy_s


class Batcher:
    """The queues of one model's devices, and the tasks that empty them."""

    def __init__(self, devices: Sequence[Device], max_batch_tokens: int, limit_s: float, pads: bool = True):
        """`limit_s` is the time limit of one batch on a device, in seconds, from when the one before it has ended.

        `pads` says whether devices pad the rows of a batch to the longest one.
        """
        self.stats = BatchStats()
        self._limit_s = limit_s
        self._pads = pads
        self._devices = [DeviceState(device, BatchQueue(max_batch_tokens, pads)) for device in devices]
        self._tasks: list[asyncio.Task[None]] = []
        self._clocks: dict[WorkItem, asyncio.TimerHandle] = {}

    @property
    def queued(self) -> int:
        """The number of rows that wait for a device."""
        return sum(device.queue.rows for device in self._devices)

    @property
    def queued_tokens(self) -> int:
        """The tokens of these rows, without padding."""
        return sum(device.queue.tokens for device in self._devices)

    @property
    def is_overdue(self) -> bool:
        """Whether a batch that exceeded its limit is still running."""
        return any(device.is_overdue for device in self._devices)

    def start(self) -> None:
        """Starts to feed the devices, in the running event loop."""
        self._tasks = [asyncio.create_task(self._feed(device)) for device in self._devices]

    async def submit(
        self,
        samples: Sequence[Any],
        lengths: Sequence[int],
        flow: tuple[str, str] = ("", ""),
        arrived: float | None = None,
    ) -> Answer:
        """Waits until each sample has its output or its exception. `lengths` are in tokens; `flow` is run and caller.

        A device that is idle counts as idle since the caller has `arrived`, by time.perf_counter(). Cancelling drops
        the samples that have not reached a model yet. Raises BatcherClosedError.
        """
        if not samples:
            return Answer([])
        if not self._tasks:
            raise BatcherClosedError("the batcher is closed, or was never started")
        work = WorkItem(samples, lengths, flow, time.perf_counter(), arrived)
        device = min(self._devices, key=DeviceState.load)
        device.queue.add(work)
        if self._is_stuck():
            self._start_clock(device.queue, work)
        device.start_ahead()
        self._wake()
        try:
            await work.done
        except asyncio.CancelledError:
            self._discard(work)
            raise
        queued_s = max(0.0, time.perf_counter() - work.asked - work.compute_s)
        return Answer(work.outputs, queued_s, work.compute_s)

    async def close(self) -> None:
        """Ends the tasks. Samples that are not done raise BatcherClosedError where they were submitted."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._stop_clocks()
        for device in self._devices:
            rows = device.rows
            device.taken_back()
            for work in device.queue.items() | {row.work for row in rows}:
                if not work.has_ended:
                    work.done.set_exception(BatcherClosedError("the batcher was closed before this work was done"))

    # ---------------------------------------------------------------------------------------------------- the devices

    def _wake(self) -> None:
        for device in self._devices:
            device.wake.set()

    async def _feed(self, device: DeviceState) -> None:
        while True:
            device.current, device.ahead = device.ahead or self._next_batch(device), None
            if device.current is not None:
                await self._run(device, device.current)
            else:
                device.wake.clear()
                await device.wake.wait()

    def _next_batch(self, device: DeviceState) -> Batch | None:
        """A batch that was just started on the device; None if there is nothing to do."""
        others = sorted(self._devices, key=lambda other: -other.queue.tokens)
        for source in (device, *others):
            while source.queue.rows:
                if rows := self._without_abandoned(source.queue.next_batch()):
                    return device.started(rows)
        for other in others:
            if rows := other.taken_back():
                return device.started(rows)
        return None

    async def _run(self, device: DeviceState, batch: Batch) -> None:
        device.start_ahead()
        try:
            done, _ = await asyncio.wait({batch.job.done}, timeout=self._limit_s)
            self._count(device, batch)
            if done:
                self._settle(device, batch)
            else:
                self._fail(batch.rows, BatchTimeoutError(f"no score within timeout_s = {self._limit_s:g} s"))
                await self._wait_for_overdue(device, batch.job.done)
        finally:
            batch.abandon()

    def _settle(self, device: DeviceState, batch: Batch) -> None:
        rows = batch.rows
        outputs, error = _outcome(batch.job.done, len(rows))
        if error is None:
            for row, output in zip(rows, outputs, strict=True):
                row.work.settle(row, output)
        elif len(rows) == 1:
            self._fail(rows, error)
        else:
            self.stats.halved += 1
            device.queue.add_batches(rows[: len(rows) // 2], rows[len(rows) // 2 :])

    def _without_abandoned(self, rows: list[Row]) -> list[Row]:
        kept = [row for row in rows if not row.work.has_ended]
        self.stats.dropped += len(rows) - len(kept)
        return kept

    def _discard(self, work: WorkItem) -> None:
        """Drops the rows of a caller who has left, as far as no device has begun them."""
        for device in self._devices:
            if device.ahead is not None and any(row.work is work for row in device.ahead.rows):
                device.queue.put_back(device.taken_back())
            self.stats.dropped += len(device.queue.discard(work))
            device.start_ahead()
        if (clock := self._clocks.pop(work, None)) is not None:
            clock.cancel()

    def _count(self, device: DeviceState, batch: Batch) -> None:
        now = time.perf_counter()
        ended = batch.job.ended or now
        began = batch.job.began or ended
        waited = began - max(device.free_since, min(row.work.arrived for row in batch.rows))
        busy_s = max(0.0, ended - max(began, device.free_since))
        self.stats.count(batch.rows, self._pads, max(0.0, waited), busy_s)
        device.free_since = max(device.free_since, ended)
        for work in {row.work for row in batch.rows}:
            work.compute_s += ended - began

    def _fail(self, rows: Sequence[Row], error: Exception) -> None:
        self.stats.failed += len(rows)
        for row in rows:
            row.work.settle(row, error)

    # ------------------------------------------------------------------------------------------------ overdue batches

    async def _wait_for_overdue(self, device: DeviceState, job: asyncio.Future[Any]) -> None:
        """Waits for a batch that has exceeded its limit: nothing else can run on its device."""
        self.stats.overdue += 1
        device.is_overdue = True
        device.queue.put_back(device.taken_back())
        if (behind := device.ahead) is not None:  # the device has begun it already, and it may hang as well
            device.ahead = None
            self._fail(behind.rows, BatchTimeoutError("the device is busy with a batch that exceeded its limit"))
            behind.abandon()
        if self._is_stuck():
            for other in self._devices:
                for work in other.queue.items():
                    self._start_clock(other.queue, work)
        self._wake()
        try:
            await asyncio.wait({job})
            with contextlib.suppress(BaseException):
                job.result()
        finally:
            device.is_overdue, device.free_since = False, time.perf_counter()
            self._stop_clocks()

    def _is_stuck(self) -> bool:
        """Whether all devices are overdue, perhaps for ever: waiting work is then given up after one limit."""
        return all(device.is_overdue for device in self._devices)

    def _start_clock(self, queue: BatchQueue, work: WorkItem) -> None:
        loop = asyncio.get_running_loop()
        self._clocks[work] = loop.call_later(self._limit_s, self._give_up, queue, work)

    def _stop_clocks(self) -> None:
        for clock in self._clocks.values():
            clock.cancel()
        self._clocks.clear()

    def _give_up(self, queue: BatchQueue, work: WorkItem) -> None:
        self._clocks.pop(work, None)
        message = f"all {len(self._devices)} devices are busy with batches that exceeded their limit"
        self._fail(queue.discard(work), BatchTimeoutError(message))


def _outcome(job: asyncio.Future[Sequence[Any]], expected: int) -> tuple[Sequence[Any], Exception | None]:
    try:
        outputs = job.result()
    except Exception as error:
        return (), error
    except asyncio.CancelledError:
        return (), RuntimeError("the batch was cancelled")
    if len(outputs) != expected:
        return (), TypeError(f"{len(outputs)} outputs for a batch of {expected}")
    return outputs, None
