"""Where a scorer runs whose model scores many groups at once: a queue and a thread a device, behind one batcher.

Owns the way of a group through a BatchedScorer: prepared in one thread, computed in those of the devices, finished.
What goes into a batch is `batcher`'s.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from typing import Any

from reward_server.execution.batcher import Batcher, BatchTimeoutError
from reward_server.execution.executors import load_scorer
from reward_server.execution.fair_queue import current_caller
from reward_server.execution.results import NoResultError, ScorerDescription, TimedResult, checked, describe, raised
from reward_server.execution.thread_pool import LimitedThreads, ThreadPool
from reward_server.scorers.base import Result
from reward_server.scorers.batched import BatchedScorer, Sample
from reward_server.types import Group, Score, Status

log = logging.getLogger("reward_server")


class BatchExecutor:
    """A batched scorer in its place. Its counters are `batcher.stats`."""

    def __init__(self, scorer: BatchedScorer):
        self._scorer = scorer
        self._preparing = LimitedThreads(f"prepare {scorer.name}", 1, scorer.options.timeout_s)
        self._computing: list[ThreadPool] = []
        self.batcher = Batcher([], scorer.max_batch_tokens, scorer.options.timeout_s)

    async def load(self) -> ScorerDescription:
        first = ThreadPool(f"scorer {self._scorer.name} 0", 1)
        self._computing = [first]
        try:
            await first.start(lambda: load_scorer(self._scorer))
        except BaseException:
            first.close()
            raise
        self._computing += [
            ThreadPool(f"scorer {self._scorer.name} {replica}", 1) for replica in range(1, self._scorer.replicas)
        ]
        devices = [functools.partial(self._compute, replica) for replica in range(self._scorer.replicas)]
        self.batcher = Batcher(devices, self._scorer.max_batch_tokens, self._scorer.options.timeout_s)
        self.batcher.start()
        return describe(self._scorer)

    async def run(self, group: Group) -> TimedResult:
        try:
            prepared, queued_s, compute_s = await self._preparing.run(lambda: self._scorer.prepare(group))
            samples = [item for item in prepared if isinstance(item, Sample)]
            answer = await self.batcher.submit(
                [sample.data for sample in samples],
                [sample.tokens for sample in samples],
                (group.run_id, current_caller.get()[1]),
            )
            outputs = iter(answer.outputs)
            merged = [next(outputs) if isinstance(item, Sample) else item for item in prepared]
            result = checked(self._finish(group, prepared, merged), len(group))
            return TimedResult(result, queued_s + answer.queued_s, compute_s + answer.compute_s)
        except NoResultError:
            raise
        except Exception as error:
            raise raised(error) from error

    async def close(self) -> None:
        is_busy = self._preparing.has_overdue or self.batcher.is_overdue
        await self.batcher.close()
        self._preparing.close()
        for thread in self._computing:
            thread.close()
        if not is_busy:
            self._scorer.close()

    async def _compute(self, replica: int, data: Sequence[Any]) -> Sequence[Any]:
        return await self._computing[replica].start(lambda: self._scorer.compute(data, replica))

    def _finish(self, group: Group, prepared: Sequence[Sample | Score], outputs: Sequence[Any]) -> Result:
        told: set[str] = set()
        scored = [self._failed(item, group, told) if isinstance(item, Exception) else item for item in outputs]
        return self._scorer.finish(prepared, scored)

    def _failed(self, error: Exception, group: Group, told: set[str]) -> Score:
        is_late = isinstance(error, BatchTimeoutError)
        failure = NoResultError(Status.TIMEOUT, str(error)) if is_late else raised(error)
        if failure.message not in told:
            told.add(failure.message)
            details = f"\n{failure.details.rstrip()}" if failure.details else ""
            what = f"scorer {self._scorer.name!r}, group {group.group_id!r}: {failure.status.name}"
            log.warning("%s: %s%s", what, failure.message, details)
        return Score(failure.status, message=failure.message)
