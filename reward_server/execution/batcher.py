"""Forms model batches from the samples of many callers, and gives each caller its own outputs.

Owns one queue for each device, and one task for each device that feeds it. Knows nothing of gRPC, scorers or threads:
for each device it is given an async function from samples to outputs.

    batcher = Batcher([compute_on_gpu_0, compute_on_gpu_1], max_batch_tokens=16384, limit_s=60)
    batcher.start()
    answer = await batcher.submit(samples, lengths, flow=("run 7", "rank 3"))
    await batcher.close()

Batches are formed as soon as a device is free; the batcher never waits for more work to arrive. Batches grow while
devices are busy. What a device computes next:

    waiting: whole groups, in fair order of run and caller   (`fair_shares`)
      -> started: groups of a few batches' tokens, their rows sorted by length
           -> a batch: the oldest group's longest row, and its neighbours in length as long as they pay

So rows of similar length are computed together, and groups finish in the order in which they were started. A device
whose own queue is empty takes a batch from the fullest other queue.

The cost of a batch is its longest row × its number of rows, in tokens. A batch that raises is split in halves until the
row at fault is alone. A batch that exceeds the time limit fails; its device gets no other batch until that one has
returned, if it ever does, and the other devices take over its queue.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from reward_server.execution.batch_queue import BatchQueue, Row, WorkItem

Compute = Callable[[Sequence[Any]], Awaitable[Sequence[Any]]]
"""Computes one output for each sample of a batch."""


class BatchTimeoutError(TimeoutError):
    """A row's batch exceeded the limit, or no device became free within it since all have batches that exceeded it."""


class BatcherClosedError(RuntimeError):
    """The batcher was closed before this work was done."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The outputs of one caller's samples, in their order: what `compute` returned, or the exception that it raised.

    `compute_s` is the time of the batches that held the samples, and `queued_s` is the rest of the time.
    """

    outputs: list[Any]
    queued_s: float = 0.0
    compute_s: float = 0.0


@dataclass(slots=True)
class BatchStats:
    """Counters since the start. A batch is one call of `compute`; a row is one sample in it."""

    batches: int = 0
    rows: int = 0
    tokens: int = 0
    """Tokens of these rows, without padding."""
    padded_tokens: int = 0
    """Tokens that were computed: longest row × rows, summed over the batches."""
    busy_s: float = 0.0
    """Seconds that devices spent computing, summed over the devices."""
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


class Batcher:
    """The queues of one model's devices, and the tasks that empty them."""

    def __init__(self, devices: Sequence[Compute], max_batch_tokens: int, limit_s: float):
        """`limit_s` is the time limit of one call of a device's `compute`, in seconds from its start."""
        self.stats = BatchStats()
        self._limit_s = limit_s
        self._devices = [_Device(compute, BatchQueue(max_batch_tokens)) for compute in devices]
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

    async def submit(self, samples: Sequence[Any], lengths: Sequence[int], flow: tuple[str, str] = ("", "")) -> Answer:
        """Waits until each sample has its output or its exception. `lengths` are in tokens; `flow` is run and caller.

        Cancelling drops the samples that have not reached a model yet. Raises BatcherClosedError.
        """
        if not samples:
            return Answer([])
        if not self._tasks:
            raise BatcherClosedError("the batcher is closed, or was never started")
        work = WorkItem(samples, lengths, flow, asked=time.perf_counter())
        queue = min(self._devices, key=_Device.load).queue
        queue.add(work)
        if self._is_stuck():
            self._start_clock(queue, work)
        self._wake()
        try:
            await work.done
        except asyncio.CancelledError:
            self.stats.dropped += len(queue.discard(work))
            if (clock := self._clocks.pop(work, None)) is not None:
                clock.cancel()
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
            for work in device.queue.items() | {row.work for row in device.running}:
                if not work.has_ended:
                    work.done.set_exception(BatcherClosedError("the batcher was closed before this work was done"))

    # ---------------------------------------------------------------------------------------------------- the devices

    def _wake(self) -> None:
        for device in self._devices:
            device.wake.set()

    async def _feed(self, device: _Device) -> None:
        while True:
            device.running = self._next_batch(device)
            if device.running:
                await self._run(device, device.running)
            else:
                device.wake.clear()
                await device.wake.wait()

    def _next_batch(self, device: _Device) -> list[Row]:
        others = sorted(self._devices, key=lambda other: -other.queue.tokens)
        for source in (device, *others):
            if source.queue.rows:
                return source.queue.next_batch()
        return []

    async def _run(self, device: _Device, rows: list[Row]) -> None:
        rows = self._without_abandoned(rows)
        if not rows:
            return
        began = time.perf_counter()
        job = asyncio.ensure_future(device.compute([row.sample for row in rows]))
        try:
            done, _ = await asyncio.wait({job}, timeout=self._limit_s)
            self._count(rows, time.perf_counter() - began)
            if done:
                self._settle(device, rows, job)
            else:
                self._fail(rows, BatchTimeoutError(f"no score within timeout_s = {self._limit_s:g} s"))
                await self._wait_for_overdue(device, job)
        finally:
            job.cancel()

    def _settle(self, device: _Device, rows: list[Row], job: asyncio.Future[Sequence[Any]]) -> None:
        outputs, error = _outcome(job, len(rows))
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

    def _count(self, rows: list[Row], took_s: float) -> None:
        self.stats.batches += 1
        self.stats.busy_s += took_s
        self.stats.rows += len(rows)
        self.stats.tokens += sum(row.length for row in rows)
        self.stats.padded_tokens += max(row.length for row in rows) * len(rows)
        for work in {row.work for row in rows}:
            work.compute_s += took_s

    def _fail(self, rows: Sequence[Row], error: Exception) -> None:
        self.stats.failed += len(rows)
        for row in rows:
            row.work.settle(row, error)

    # ------------------------------------------------------------------------------------------------ overdue batches

    async def _wait_for_overdue(self, device: _Device, job: asyncio.Future[Any]) -> None:
        """Waits for a batch that has exceeded its limit: nothing else can run on its device."""
        self.stats.overdue += 1
        device.is_overdue = True
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
            device.is_overdue = False
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


@dataclass(slots=True)
class _Device:
    """One device, its queue and its running batch."""

    compute: Compute
    queue: BatchQueue
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    running: list[Row] = field(default_factory=list)
    is_overdue: bool = False

    def load(self) -> float:
        """The tokens that the device has to compute before it is free."""
        return math.inf if self.is_overdue else self.queue.tokens + sum(row.length for row in self.running)


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
