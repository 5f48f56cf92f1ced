"""Executors of a scorer: on the event loop, in threads, in worker processes. Others are in files of their own.

Owns the protocol that all executors share, and the limits on time and concurrency where a scorer runs. Knows nothing of
gRPC. An executor that gets no result raises NoResultError; `one_by_one` turns that into failed scores.

    executor = LoopExecutor(scorer)
    description = await executor.load()
    timed = await executor.run(group)     raises NoResultError, or InvalidGroupError if the scorer blames the group
    await executor.close()
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import time
from collections.abc import Awaitable, Coroutine, Iterator
from typing import Any, Protocol

from reward_server.errors import RewardServerError, ScorerLoadError
from reward_server.execution.fair_queue import FairSemaphore
from reward_server.execution.results import (
    NoResultError,
    ScorerDescription,
    TimedResult,
    describe,
    failure_from,
    timeout_failure,
    validated,
)
from reward_server.execution.tasks import OverdueError, within
from reward_server.execution.thread_pool import LimitedThreads
from reward_server.execution.threads import in_thread
from reward_server.execution.worker_pool import WorkerPool
from reward_server.scorers.base import Scorer
from reward_server.scorers.loading import user_traceback
from reward_server.types import Group

DEFAULT_THREADS = 16  # for functions that wait for another service; a model sets its concurrency to 1


class Executor(Protocol):
    """Scores groups. Executors wrap one another: each adds one step around the `run` of the next."""

    def run(self, group: Group, /) -> Coroutine[Any, Any, TimedResult]: ...


class ScorerExecutor(Executor, Protocol):
    """An innermost executor: it holds the scorer itself."""

    async def load(self) -> ScorerDescription: ...
    async def close(self) -> None: ...


class LoopExecutor:
    """Runs a scorer on the event loop: one that is async and mostly waits, or one that takes microseconds."""

    def __init__(self, scorer: Scorer):
        self._scorer = scorer
        self._timeout_s = scorer.options.timeout_s
        self._slots = FairSemaphore(scorer.concurrency) if scorer.concurrency else None

    async def load(self) -> ScorerDescription:
        with contextlib.suppress(Exception, SystemExit):
            await in_thread(self._scorer.preload)
        with _load_errors_of(self._scorer):
            if (loading := self._scorer.load()) is not None:
                await loading
        return describe(self._scorer)

    def run(self, group: Group) -> Coroutine[Any, Any, TimedResult]:
        return self._score(group, 0.0) if self._slots is None else self._score_in_turn(group, self._slots)

    async def close(self) -> None:
        if (closing := self._scorer.close()) is not None:
            await closing

    async def _score_in_turn(self, group: Group, slots: FairSemaphore) -> TimedResult:
        asked = time.perf_counter()
        async with slots:
            return await self._score(group, time.perf_counter() - asked)

    async def _score(self, group: Group, queued_s: float) -> TimedResult:
        began = time.perf_counter()
        try:
            answer: Any = self._scorer.score(group)
            if inspect.isawaitable(answer):
                answer = await within(self._timeout_s, answer)
            return TimedResult(validated(answer, len(group)), queued_s, time.perf_counter() - began)
        except OverdueError:
            raise timeout_failure(self._timeout_s) from None
        except (Exception, SystemExit) as error:
            raise failure_from(error) from error


class ThreadExecutor:
    """Runs a scorer in threads of its own: a model that releases the GIL, or a function that waits for a service."""

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
            return TimedResult(validated(answer, len(group)), queued_s, compute_s)
        except NoResultError:
            raise
        except Exception as error:
            raise failure_from(error) from error

    async def close(self) -> None:
        self._threads.close()
        if not self._threads.has_overdue:
            self._scorer.close()

    def _score(self, group: Group) -> Any:
        answer = self._scorer.score(group)
        return asyncio.run(_wait_for(answer)) if inspect.isawaitable(answer) else answer


class WorkerExecutor:
    """Runs a scorer in the worker processes that all such scorers share. The pool loads it when it starts."""

    def __init__(self, scorer: Scorer, pool: WorkerPool):
        self._scorer = scorer
        self._pool = pool
        self._slots = FairSemaphore(scorer.concurrency) if scorer.concurrency else None

    async def load(self) -> ScorerDescription:
        return self._pool.descriptions[self._scorer.name]

    async def run(self, group: Group) -> TimedResult:
        asked = time.perf_counter()
        if self._slots is None:
            return await self._score(group, asked)
        async with self._slots:
            return await self._score(group, asked)

    async def close(self) -> None:
        """Does nothing: the owner of the pool closes it."""

    async def _score(self, group: Group, asked: float) -> TimedResult:
        waited_s = time.perf_counter() - asked
        timed = await self._pool.run(self._scorer.name, group, self._scorer.options.timeout_s)
        return TimedResult(timed.result, waited_s + timed.queued_s, timed.compute_s)


def load_scorer(scorer: Scorer) -> None:
    """Loads a scorer in the current thread. Raises ScorerLoadError with the traceback of user code."""
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


async def _wait_for(answer: Awaitable[Any]) -> Any:
    return await answer
