"""Where scorers run: on the event loop, in threads, in worker processes. One face for the three.

Owns time limits, concurrency limits and the measuring of both sides of them. Knows nothing of gRPC, and not what a
group without a result is worth: it raises, `scoring` decides.

    place = LoopPlace(scorer)
    card = await place.load()
    timed = await place.run(group)        raises NoResultError, or InvalidGroupError if the scorer blames the group
    await place.close()
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import queue
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Protocol

from reward_server.errors import RewardServerError, ScorerLoadError
from reward_server.fair import Turns
from reward_server.results import Card, NoResultError, Timed, card_of, checked, over_limit, raised
from reward_server.scorers.base import Scorer
from reward_server.scorers.loading import user_traceback
from reward_server.threads import in_thread
from reward_server.types import Group, Status
from reward_server.workers import WorkerPool

DEFAULT_THREADS = 16  # for functions that wait for somebody else; a model says that its concurrency is 1


class Running(Protocol):
    """A scorer in its place."""

    async def load(self) -> Card: ...
    async def run(self, group: Group) -> Timed: ...
    async def close(self) -> None: ...


class LoopPlace:
    """On the event loop: what is async and spends its time waiting, or takes microseconds."""

    def __init__(self, scorer: Scorer):
        self._scorer = scorer
        self._turns = Turns(scorer.concurrency) if scorer.concurrency else None

    async def load(self) -> Card:
        with contextlib.suppress(Exception, SystemExit):
            await in_thread(self._scorer.preload)
        with _load_errors_of(self._scorer):
            if (loading := self._scorer.load()) is not None:
                await loading
        return card_of(self._scorer)

    async def run(self, group: Group) -> Timed:
        if self._turns is None:
            return await self._run(group, 0.0)
        asked = time.perf_counter()
        async with self._turns:
            return await self._run(group, time.perf_counter() - asked)

    async def close(self) -> None:
        if (closing := self._scorer.close()) is not None:
            await closing

    async def _run(self, group: Group, queued_s: float) -> Timed:
        began = time.perf_counter()
        limit = asyncio.timeout(self._scorer.options.timeout_s)
        try:
            answer: Any = self._scorer.score(group)
            if inspect.isawaitable(answer):
                async with limit:
                    answer = await answer
            return Timed(checked(answer, len(group)), queued_s, time.perf_counter() - began)
        except (Exception, SystemExit) as error:
            if isinstance(error, TimeoutError) and limit.expired():
                raise over_limit(self._scorer.options.timeout_s) from None
            raise raised(error) from error


class ThreadPlace:
    """In threads of its own: a model that releases the interpreter's lock, or a function that waits for others.

    A thread cannot be killed. One that outlasts its limit keeps its place until it ends; when all have, a group waits
    one time limit for a free one and is given up.
    """

    def __init__(self, scorer: Scorer):
        self._scorer = scorer
        self._size = scorer.concurrency or DEFAULT_THREADS
        self._turns = Turns(self._size)
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._threads = 0
        self._overdue = 0

    async def load(self) -> Card:
        await self._in_thread(lambda: _load(self._scorer))
        return card_of(self._scorer)

    async def run(self, group: Group) -> Timed:
        asked = time.perf_counter()
        await self._turn()
        began = time.perf_counter()
        job = self._in_thread(lambda: self._score(group))
        job.add_done_callback(lambda _: self._turns.give_back())
        try:
            done, _ = await asyncio.wait({job}, timeout=self._scorer.options.timeout_s)
        except asyncio.CancelledError:
            job.add_done_callback(_look_away)
            raise
        if not done:
            self._overdue += 1
            job.add_done_callback(self._no_longer_overdue)
            what_became = ", and its thread runs on: it cannot be killed"
            raise over_limit(self._scorer.options.timeout_s, what_became, retry_alone=self._size > 1)
        try:
            return Timed(checked(job.result(), len(group)), began - asked, time.perf_counter() - began)
        except Exception as error:
            raise raised(error) from error

    async def close(self) -> None:
        for _ in range(self._threads):
            self._jobs.put(None)
        if not self._overdue:
            self._scorer.close()

    def _score(self, group: Group) -> Any:
        answer = self._scorer.score(group)
        return asyncio.run(_wait(answer)) if inspect.isawaitable(answer) else answer

    async def _turn(self) -> None:
        timeout_s = self._scorer.options.timeout_s
        try:
            async with asyncio.timeout(timeout_s if self._overdue >= self._size else None):
                await self._turns.take()
        except TimeoutError:
            message = f"all {self._size} threads of this scorer are busy with groups that outlasted their limit"
            raise NoResultError(Status.TIMEOUT, message, retry_alone=False) from None

    def _no_longer_overdue(self, job: asyncio.Future[Any]) -> None:
        self._overdue -= 1
        _look_away(job)

    def _in_thread(self, function: Callable[[], Any]) -> asyncio.Future[Any]:
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
            # Daemons, since one that hangs must not keep the process from ending.
            threading.Thread(target=self._work, name=f"scorer {self._scorer.name}", daemon=True).start()
        self._jobs.put(job)
        return future

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()


class WorkerPlace:
    """In the worker processes that all such scorers share. They have loaded it when the pool has started."""

    def __init__(self, scorer: Scorer, pool: WorkerPool):
        self._scorer = scorer
        self._pool = pool
        self._turns = Turns(scorer.concurrency) if scorer.concurrency else None

    async def load(self) -> Card:
        return self._pool.cards[self._scorer.name]

    async def run(self, group: Group) -> Timed:
        asked = time.perf_counter()
        if self._turns is None:
            return await self._run(group, asked)
        async with self._turns:
            return await self._run(group, asked)

    async def close(self) -> None:
        """The pool is closed by who opened it."""

    async def _run(self, group: Group, asked: float) -> Timed:
        waited_s = time.perf_counter() - asked
        timed = await self._pool.run(self._scorer.name, group, self._scorer.options.timeout_s)
        return Timed(timed.result, waited_s + timed.queued_s, timed.compute_s)


def _load(scorer: Scorer) -> None:
    with _load_errors_of(scorer):
        scorer.load()


@contextlib.contextmanager
def _load_errors_of(scorer: Scorer) -> Iterator[None]:
    try:
        yield
    except (RewardServerError, asyncio.CancelledError):
        raise
    except BaseException as error:
        raise ScorerLoadError(f"scorer {scorer.name!r}: loading raised\n{user_traceback(error)}") from error


async def _wait(answer: Awaitable[Any]) -> Any:
    return await answer


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
