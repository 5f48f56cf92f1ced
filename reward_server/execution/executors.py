"""Where scorers run: on the event loop, in threads, in worker processes. One face for the three.

Owns time limits, concurrency limits and the measuring of both sides of them. Knows nothing of gRPC, and not what a
group without a result is worth: it raises, `scoring` decides.

    place = LoopExecutor(scorer)
    description = await place.load()
    timed = await place.run(group)        raises NoResultError, or InvalidGroupError if the scorer blames the group
    await place.close()
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import time
from collections.abc import Awaitable, Iterator
from typing import Any, Protocol

from reward_server.errors import RewardServerError, ScorerLoadError
from reward_server.execution.fair_queue import FairSemaphore
from reward_server.execution.results import (
    NoResultError,
    ScorerDescription,
    TimedResult,
    checked,
    describe,
    over_limit,
    raised,
)
from reward_server.execution.thread_pool import LimitedThreads
from reward_server.execution.threads import in_thread
from reward_server.execution.worker_pool import WorkerPool
from reward_server.scorers.base import Scorer
from reward_server.scorers.loading import user_traceback
from reward_server.types import Group

DEFAULT_THREADS = 16  # for functions that wait for somebody else; a model says that its concurrency is 1


class Executor(Protocol):
    """A scorer in its place."""

    async def load(self) -> ScorerDescription: ...
    async def run(self, group: Group) -> TimedResult: ...
    async def close(self) -> None: ...


class LoopExecutor:
    """On the event loop: what is async and spends its time waiting, or takes microseconds."""

    def __init__(self, scorer: Scorer):
        self._scorer = scorer
        self._turns = FairSemaphore(scorer.concurrency) if scorer.concurrency else None

    async def load(self) -> ScorerDescription:
        with contextlib.suppress(Exception, SystemExit):
            await in_thread(self._scorer.preload)
        with _load_errors_of(self._scorer):
            if (loading := self._scorer.load()) is not None:
                await loading
        return describe(self._scorer)

    async def run(self, group: Group) -> TimedResult:
        if self._turns is None:
            return await self._run(group, 0.0)
        asked = time.perf_counter()
        async with self._turns:
            return await self._run(group, time.perf_counter() - asked)

    async def close(self) -> None:
        if (closing := self._scorer.close()) is not None:
            await closing

    async def _run(self, group: Group, queued_s: float) -> TimedResult:
        began = time.perf_counter()
        limit = asyncio.timeout(self._scorer.options.timeout_s)
        try:
            answer: Any = self._scorer.score(group)
            if inspect.isawaitable(answer):
                async with limit:
                    answer = await answer
            return TimedResult(checked(answer, len(group)), queued_s, time.perf_counter() - began)
        except (Exception, SystemExit) as error:
            if isinstance(error, TimeoutError) and limit.expired():
                raise over_limit(self._scorer.options.timeout_s) from None
            raise raised(error) from error


class ThreadExecutor:
    """In threads of its own: a model that releases the interpreter's lock, or a function that waits for others."""

    def __init__(self, scorer: Scorer):
        self._scorer = scorer
        size = scorer.concurrency or DEFAULT_THREADS
        self._threads = LimitedThreads(f"scorer {scorer.name}", size, scorer.options.timeout_s)

    async def load(self) -> ScorerDescription:
        await self._threads.start(lambda: load_scorer(self._scorer))
        return describe(self._scorer)

    async def run(self, group: Group) -> TimedResult:
        try:
            answer, queued_s, compute_s = await self._threads.run(lambda: self._score(group))
            return TimedResult(checked(answer, len(group)), queued_s, compute_s)
        except NoResultError:
            raise
        except Exception as error:
            raise raised(error) from error

    async def close(self) -> None:
        self._threads.close()
        if not self._threads.has_overdue:
            self._scorer.close()

    def _score(self, group: Group) -> Any:
        answer = self._scorer.score(group)
        return asyncio.run(_wait(answer)) if inspect.isawaitable(answer) else answer


class WorkerExecutor:
    """In the worker processes that all such scorers share. They have loaded it when the pool has started."""

    def __init__(self, scorer: Scorer, pool: WorkerPool):
        self._scorer = scorer
        self._pool = pool
        self._turns = FairSemaphore(scorer.concurrency) if scorer.concurrency else None

    async def load(self) -> ScorerDescription:
        return self._pool.descriptions[self._scorer.name]

    async def run(self, group: Group) -> TimedResult:
        asked = time.perf_counter()
        if self._turns is None:
            return await self._run(group, asked)
        async with self._turns:
            return await self._run(group, asked)

    async def close(self) -> None:
        """The pool is closed by who opened it."""

    async def _run(self, group: Group, asked: float) -> TimedResult:
        waited_s = time.perf_counter() - asked
        timed = await self._pool.run(self._scorer.name, group, self._scorer.options.timeout_s)
        return TimedResult(timed.result, waited_s + timed.queued_s, timed.compute_s)


def load_scorer(scorer: Scorer) -> None:
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
