"""Daemon threads that run blocking functions for the event loop, with and without a time limit.

Owns the threads, the order of waiting callers, and handing a function's result or exception back to the event loop.
Knows nothing of scorers.

    pool = ThreadPool("scorer rm", size=1)
    value = await pool.start(function)

    limited = LimitedThreads("scorer mine", size=16, limit_s=60)
    value, queued_s, compute_s = await limited.run(function)      raises NoResultError
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

from reward_server.execution.fair_queue import FairSemaphore
from reward_server.execution.results import NoResultError, timeout_failure
from reward_server.types import Status


class ThreadPool:
    """At most `size` threads, each started when it is first needed. Further jobs wait for a free thread.

    They are daemon threads: a thread that hangs must not keep the process from ending.
    """

    def __init__(self, name: str, size: int):
        self._name = name
        self._size = size
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._threads = 0
        self._starting = threading.Lock()

    def start(self, function: Callable[[], Any]) -> asyncio.Future[Any]:
        """Starts the function, or queues it for a thread. Cancelling the future does not end the function."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()

        def job() -> None:
            try:
                settle, value = future.set_result, function()
            except BaseException as error:
                settle, value = future.set_exception, for_future(error)
            with contextlib.suppress(RuntimeError):  # the loop is closed, so nobody waits any more
                loop.call_soon_threadsafe(lambda: None if future.done() else settle(value))

        self.submit(job)
        return future

    def submit(self, job: Callable[[], None]) -> None:
        """Runs a function that raises nothing and whose result nobody waits for. May be called in any thread."""
        with self._starting:
            if self._threads < self._size:
                self._threads += 1
                threading.Thread(target=self._work, name=self._name, daemon=True).start()
        self._jobs.put(job)

    def close(self) -> None:
        """Ends each thread once its current function has returned."""
        for _ in range(self._threads):
            self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
            del job  # it may hold large objects


class LimitedThreads:
    """Runs at most `size` functions at once, each within `limit_s` seconds from its start.

    A thread cannot be killed. A function that exceeds its limit occupies its thread until it returns. While all threads
    are occupied like that, a new function waits `limit_s` for a free thread and then fails.
    """

    def __init__(self, name: str, size: int, limit_s: float):
        self._size = size
        self._limit_s = limit_s
        self._pool = ThreadPool(name, size)
        self._slots = FairSemaphore(size)
        self._overdue = 0

    @property
    def has_overdue(self) -> bool:
        """Whether a function that exceeded its limit is still running."""
        return self._overdue > 0

    async def run(self, function: Callable[[], Any]) -> tuple[Any, float, float]:
        """Returns the function's result, the seconds it waited for a thread and the seconds it took.

        Raises what the function raises, and NoResultError (TIMEOUT) where a limit was exceeded.
        """
        asked = time.perf_counter()
        await self._acquire_slot()
        began = time.perf_counter()
        job = self._pool.start(function)
        job.add_done_callback(lambda _: self._slots.release())
        try:
            done, _ = await asyncio.wait({job}, timeout=self._limit_s)
        except asyncio.CancelledError:
            job.add_done_callback(_discard_error)
            raise
        if not done:
            self._overdue += 1
            job.add_done_callback(self._no_longer_overdue)
            consequence = ", and its thread runs on: it cannot be killed"
            raise timeout_failure(self._limit_s, consequence, retry_alone=self._size > 1)
        return job.result(), began - asked, time.perf_counter() - began

    def start(self, function: Callable[[], Any]) -> asyncio.Future[Any]:
        """Starts a function without a time limit, in one of the threads that `run` uses. For loading a scorer."""
        return self._pool.start(function)

    def close(self) -> None:
        """Ends each thread once its current function has returned."""
        self._pool.close()

    async def _acquire_slot(self) -> None:
        try:
            async with asyncio.timeout(self._limit_s if self._overdue >= self._size else None):
                await self._slots.acquire()
        except TimeoutError:
            message = f"all {self._size} threads of this scorer are busy with groups that exceeded their limit"
            raise NoResultError(Status.TIMEOUT, message, retry_alone=False) from None

    def _no_longer_overdue(self, job: asyncio.Future[Any]) -> None:
        self._overdue -= 1
        _discard_error(job)


def _discard_error(job: asyncio.Future[Any]) -> None:
    """Marks the exception of a job that nobody waits for as retrieved, so that asyncio does not log it."""
    if not job.cancelled():
        job.exception()


def for_future(error: BaseException) -> BaseException:
    """An exception that a future can hold: asyncio re-raises SystemExit in its loop, and refuses StopIteration."""
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        return error
    wrapped = RuntimeError(f"{type(error).__name__}: {error}")
    wrapped.__cause__ = error
    return wrapped
