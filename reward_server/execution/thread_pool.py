"""Daemon threads that run blocking functions for the event loop, with and without a time limit.

Owns the threads, the turns and the way of a function's result, or of whatever it raises, back into the loop. Knows
nothing of scorers.

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
from reward_server.execution.results import NoResultError, over_limit
from reward_server.types import Status


class ThreadPool:
    """At most `size` threads, each started when it is first needed; jobs beyond that wait.

    They are daemons, since one that hangs must not keep the process from ending.
    """

    def __init__(self, name: str, size: int):
        self._name = name
        self._size = size
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._threads = 0

    def start(self, function: Callable[[], Any]) -> asyncio.Future[Any]:
        """Begins to run it, or lets it wait for a thread. Cancelling the future does not end the function."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()

        def job() -> None:
            try:
                settle, value = future.set_result, function()
            except BaseException as error:
                settle, value = future.set_exception, _for_a_future(error)
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(lambda: None if future.done() else settle(value))

        if self._threads < self._size:
            self._threads += 1
            threading.Thread(target=self._work, name=self._name, daemon=True).start()
        self._jobs.put(job)
        return future

    def close(self) -> None:
        """Ends each thread when what it runs has ended."""
        for _ in range(self._threads):
            self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
            del job  # it may hold what is large


class LimitedThreads:
    """At most `size` functions at once, each within `limit_s` from when it begins.

    A thread cannot be killed. One that outlasts its limit keeps its place until it ends; when all have, a function
    waits one limit for a free one and is given up.
    """

    def __init__(self, name: str, size: int, limit_s: float):
        self._size = size
        self._limit_s = limit_s
        self._pool = ThreadPool(name, size)
        self._turns = FairSemaphore(size)
        self._overdue = 0

    @property
    def has_overdue(self) -> bool:
        """Whether something that outlasted its limit runs still."""
        return self._overdue > 0

    async def run(self, function: Callable[[], Any]) -> tuple[Any, float, float]:
        """What it returns, and the seconds it waited for a thread and took. What it raises is raised as it is."""
        asked = time.perf_counter()
        await self._turn()
        began = time.perf_counter()
        job = self._pool.start(function)
        job.add_done_callback(lambda _: self._turns.release())
        try:
            done, _ = await asyncio.wait({job}, timeout=self._limit_s)
        except asyncio.CancelledError:
            job.add_done_callback(_look_away)
            raise
        if not done:
            self._overdue += 1
            job.add_done_callback(self._no_longer_overdue)
            what_became = ", and its thread runs on: it cannot be killed"
            raise over_limit(self._limit_s, what_became, retry_alone=self._size > 1)
        return job.result(), began - asked, time.perf_counter() - began

    def start(self, function: Callable[[], Any]) -> asyncio.Future[Any]:
        """Begins to run it without limit, as when a scorer is loaded, in a thread that `run` uses too."""
        return self._pool.start(function)

    def close(self) -> None:
        """Ends each thread when what it runs has ended."""
        self._pool.close()

    async def _turn(self) -> None:
        try:
            async with asyncio.timeout(self._limit_s if self._overdue >= self._size else None):
                await self._turns.acquire()
        except TimeoutError:
            message = f"all {self._size} threads of this scorer are busy with groups that outlasted their limit"
            raise NoResultError(Status.TIMEOUT, message, retry_alone=False) from None

    def _no_longer_overdue(self, job: asyncio.Future[Any]) -> None:
        self._overdue -= 1
        _look_away(job)


def _look_away(job: asyncio.Future[Any]) -> None:
    """What an unwanted job raised is nobody's."""
    if not job.cancelled():
        job.exception()


def _for_a_future(error: BaseException) -> BaseException:
    """asyncio would raise SystemExit through its loop and refuses StopIteration."""
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        return error
    wrapped = RuntimeError(f"{type(error).__name__}: {error}")
    wrapped.__cause__ = error
    return wrapped
