"""The way of a batch through one device: assembled, computed, read, each step in a thread of its own.

    loop: device.start(samples) ──► assemble ──► compute ──► read ──► loop: job.done
                                    (any host)   (the device's own)

A batch goes from thread to thread without the event loop. So the next batch is assembled while one is computed, its
computing begins the moment that the device's thread is free, and outputs are read while the next one is computed.

Owns the threads and a batch's times. Knows nothing of queues, callers or scorers: it is given the three functions.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from reward_server.execution.thread_pool import ThreadPool, for_future


class Job:
    """A batch on its way. `done` gets its outputs, or the exception of whichever step raised."""

    def __init__(self, samples: Sequence[Any]):
        self.samples = samples
        self._loop = asyncio.get_running_loop()
        self.done: asyncio.Future[Sequence[Any]] = self._loop.create_future()
        self.began: float | None = None
        """When its computing began, by time.perf_counter(); None until then."""
        self.ended: float | None = None
        """When its outputs were there."""
        self._is_taken_back = False
        self._lock = threading.Lock()

    def begin(self) -> bool:
        """Called before it is computed. Returns False if it was taken back, and must not be computed."""
        with self._lock:
            if not self._is_taken_back:
                self.began = time.perf_counter()
            return not self._is_taken_back

    def take_back(self) -> bool:
        """Keeps it from being computed. Returns False if it is too late for that."""
        with self._lock:
            self._is_taken_back = self._is_taken_back or (self.began is None and self.ended is None)
            return self._is_taken_back

    def end(self, outputs: Sequence[Any] = (), error: BaseException | None = None) -> None:
        """Completes `done`. May be called in any thread."""
        with self._lock:
            self.ended = time.perf_counter()
        with contextlib.suppress(RuntimeError):  # the loop is closed, so nobody waits any more
            self._loop.call_soon_threadsafe(self._settle, outputs, error)

    def _settle(self, outputs: Sequence[Any], error: BaseException | None) -> None:
        if self.done.done():
            return
        if error is None:
            self.done.set_result(outputs)
        else:
            self.done.set_exception(for_future(error))


class Device(Protocol):
    """What computes batches, in the order in which they are started."""

    def start(self, samples: Sequence[Any]) -> Job: ...


class ThreadedDevice:
    """The three steps, each in a daemon thread: one that hangs must not keep the process from ending."""

    def __init__(
        self,
        name: str,
        assemble: Callable[[Sequence[Any]], Any],
        compute: Callable[[Any], Any],
        read: Callable[[Any], Sequence[Any]],
    ):
        self._assemble, self._compute, self._read = assemble, compute, read
        self._computing = ThreadPool(name, 1)
        self._assembling, self._reading = ThreadPool(f"assemble {name}", 1), ThreadPool(f"read {name}", 1)

    def run(self, function: Callable[[], Any]) -> asyncio.Future[Any]:
        """Runs a function in the thread that computes. For loading a scorer."""
        return self._computing.start(function)

    def start(self, samples: Sequence[Any]) -> Job:
        """Sends a batch on its way, behind those that were started before."""
        job = Job(samples)
        self._assembling.submit(lambda: self._step(job, self._assembled))
        return job

    def close(self) -> None:
        """Ends each thread once its current function has returned."""
        for threads in (self._assembling, self._computing, self._reading):
            threads.close()

    def _step(self, job: Job, step: Callable[[Job], None]) -> None:
        try:
            step(job)
        except BaseException as error:
            job.end(error=error)

    def _assembled(self, job: Job) -> None:
        assembled = self._assemble(job.samples)
        self._computing.submit(lambda: self._step(job, lambda job: self._computed(job, assembled)))

    def _computed(self, job: Job, assembled: Any) -> None:
        if job.begin():
            computed = self._compute(assembled)
            self._reading.submit(lambda: self._step(job, lambda job: job.end(self._read(computed))))
