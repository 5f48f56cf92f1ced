"""The calls of samples: each joins its cohort and waits until that is scored, once for all of its calls.

Owns the tasks that wait for cohorts to be complete and score them, and the calls that wait for these tasks. `cohorts`
decides what belongs together; how a group is scored is the service's business.

    calls = CohortCalls(metrics, limits)
    answer = await calls.answer(key, sample, request_bytes, score, unscored)
    calls.drain()          cohorts that are not complete will not be
    await calls.close()

A call that is cancelled leaves its sample behind until the time of its cohort is over, so that its siblings are scored
and it may come again. Scoring is cancelled when nobody waits for it any more.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

from reward_server.config import LimitsConfig
from reward_server.errors import UnavailableError
from reward_server.observability.metrics import Metrics
from reward_server.serving.cohorts import Cohort, CohortKey, Cohorts, late_or_missing
from reward_server.types import Group, Sample, group_of

Score = Callable[[Group], Awaitable[Sequence[bytes]]]
"""Scores a group and returns the response of each of its G samples."""

Unscored = Callable[[str], bytes]
"""The response of a sample that was not scored, with the reason: every score is TIMEOUT."""


class CohortCalls:
    """The calls that wait for the other samples of their groups, or for the scores of the whole group."""

    def __init__(self, metrics: Metrics, limits: LimitsConfig):
        self._cohorts = Cohorts(*_bounds(limits))
        self._metrics = metrics
        self._running: dict[Cohort, _Running] = {}
        self._is_draining = False

    def resize(self, limits: LimitsConfig) -> None:
        """Changes the bounds for samples that come from now on."""
        self._cohorts.resize(*_bounds(limits))

    async def answer(
        self, key: CohortKey, sample: Sample, request_bytes: int, score: Score, unscored: Unscored
    ) -> bytes:
        """The response to a sample, once its cohort is scored or closed.

        Raises InvalidGroupError and OverloadedError at once, the error that scoring the group raises, and
        UnavailableError if the server drains first.
        """
        cohort = self._cohorts.joined(key, sample, request_bytes, time.monotonic())
        if (known := cohort.answer_to(sample)) is not None:
            return known
        if (running := self._running.get(cohort)) is None:
            running = self._running[cohort] = _Running()
            running.begin(self._gather_and_score(key, cohort, running, score, unscored))
        if cohort.is_complete or self._is_draining:
            running.gathered.set()
        await running.wait()
        answer = cohort.answer_to(sample)
        assert answer is not None, "a cohort that ends without an error has an answer for each sample"
        return answer

    def drain(self) -> None:
        """Fails the calls of cohorts that are not complete, since no new call will complete them."""
        self._is_draining = True
        for running in self._running.values():
            running.gathered.set()

    async def close(self) -> None:
        """Ends what is still being gathered or scored."""
        await asyncio.gather(*(running.end() for running in list(self._running.values())))

    async def _gather_and_score(
        self, key: CohortKey, cohort: Cohort, running: _Running, score: Score, unscored: Unscored
    ) -> None:
        outcome = "dropped"
        self._metrics.gathering(1)
        try:
            began = time.monotonic()
            await _set_within(running.gathered, cohort.closes_at - began)
            late = unscored(late_or_missing(cohort, round(time.monotonic() - began, 3)))
            if not cohort.is_complete and self._is_draining:
                raise UnavailableError("the server is draining, and this group is not complete")
            if cohort.is_complete or (cohort.first.score_incomplete and running.calls):
                ended, names = "complete" if cohort.is_complete else "incomplete", cohort.names()
                responses = await running.scored(score(group_of(cohort.samples())))
                answers = dict(zip(names, responses, strict=True))
            else:
                ended, answers = "timeout", dict.fromkeys(cohort.names(), late)
            outcome = ended
            self._cohorts.finish(key, cohort, answers, late, time.monotonic())
        finally:
            self._cohorts.drop(key, cohort)
            del self._running[cohort]
            self._metrics.gathering(-1, outcome)


class _Running:
    """The task of one cohort, and how many calls wait for it."""

    def __init__(self) -> None:
        self.gathered = asyncio.Event()
        self.calls = 0
        self._is_scoring = False

    def begin(self, work: Coroutine[Any, Any, None]) -> None:
        self._task = asyncio.create_task(work)
        self._task.add_done_callback(lambda task: task.cancelled() or task.exception())  # its calls may have left

    async def wait(self) -> None:
        """Waits for the task, and raises what it raised. The last call that leaves cancels the scoring."""
        self.calls += 1
        try:
            await asyncio.wait({self._task})
        finally:
            self.calls -= 1
            if not self.calls and self._is_scoring:
                self._task.cancel()
        if self._task.cancelled():  # this call came when all others had just left, or the server ends
            raise UnavailableError("the scoring of this group was given up; send it again")
        self._task.result()

    async def end(self) -> None:
        self._task.cancel()
        await asyncio.wait({self._task})

    async def scored(self, scoring: Awaitable[Sequence[bytes]]) -> Sequence[bytes]:
        """Awaits the scores, for as long as a call waits for them."""
        self._is_scoring = True
        return await scoring


async def _set_within(event: asyncio.Event, timeout_s: float) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        pass


def _bounds(limits: LimitsConfig) -> tuple[int, int, int]:
    return limits.max_queued_completions, limits.max_queued_bytes, limits.max_group_bytes
