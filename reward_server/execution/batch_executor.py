"""The executor of a scorer whose model scores batches of several groups: one queue and its threads for each device.

Owns the steps of a group through a BatchedScorer: `prepare` in a thread, then in the devices' threads `assemble`,
`compute` and `read` of the batches that hold its samples, then `finish`. The batcher decides what goes into a batch.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

from reward_server.execution.batch_device import ThreadedDevice
from reward_server.execution.batcher import Batcher, BatchTimeoutError
from reward_server.execution.executors import load_scorer
from reward_server.execution.fair_queue import current_caller
from reward_server.execution.results import (
    NoResultError,
    ScorerDescription,
    TimedResult,
    describe,
    failure_from,
    validated,
)
from reward_server.execution.thread_pool import LimitedThreads
from reward_server.scorers.base import Result
from reward_server.scorers.batched import BatchedScorer, Sample
from reward_server.types import Group, Score, Status

log = logging.getLogger("reward_server")


class BatchExecutor:
    """Runs a batched scorer. Its counters are `batcher.stats`."""

    def __init__(self, scorer: BatchedScorer):
        self._scorer = scorer
        self._prepare_thread = LimitedThreads(f"prepare {scorer.name}", 1, scorer.options.timeout_s)
        self._devices: list[ThreadedDevice] = []
        self.batcher = Batcher([], scorer.max_batch_tokens, scorer.options.timeout_s)

    async def load(self) -> ScorerDescription:
        scorer = self._scorer
        first = self._device(0)
        self._devices = [first]
        try:
            await first.run(lambda: load_scorer(scorer))
        except BaseException:
            first.close()
            raise
        self._devices += [self._device(replica) for replica in range(1, scorer.replicas)]
        self.batcher = Batcher(self._devices, scorer.max_batch_tokens, scorer.options.timeout_s, scorer.pads)
        self.batcher.start()
        return describe(scorer)

    async def run(self, group: Group) -> TimedResult:
        arrived = time.perf_counter()
        try:
            prepared, queued_s, compute_s = await self._prepare_thread.run(lambda: self._scorer.prepare(group))
            samples = [item for item in prepared if isinstance(item, Sample)]
            answer = await self.batcher.submit(
                [sample.data for sample in samples],
                [sample.tokens for sample in samples],
                (group.run_id, current_caller.get()[1]),
                arrived,
            )
            outputs = iter(answer.outputs)
            merged = [next(outputs) if isinstance(item, Sample) else item for item in prepared]
            result = validated(self._finish(group, prepared, merged), len(group))
            return TimedResult(result, queued_s + answer.queued_s, compute_s + answer.compute_s)
        except NoResultError:
            raise
        except Exception as error:
            raise failure_from(error) from error

    async def close(self) -> None:
        has_overdue = self._prepare_thread.has_overdue or self.batcher.is_overdue
        await self.batcher.close()
        self._prepare_thread.close()
        for device in self._devices:
            device.close()
        if not has_overdue:
            self._scorer.close()

    def _device(self, replica: int) -> ThreadedDevice:
        scorer = self._scorer
        name = f"scorer {scorer.name} {replica}"
        return ThreadedDevice(name, scorer.assemble, lambda batch: scorer.compute(batch, replica), scorer.read)

    def _finish(self, group: Group, prepared: Sequence[Sample | Score], outputs: Sequence[Any]) -> Result:
        logged: set[str] = set()
        scored = [self._failed(item, group, logged) if isinstance(item, Exception) else item for item in outputs]
        return self._scorer.finish(prepared, scored)

    def _failed(self, error: Exception, group: Group, logged: set[str]) -> Score:
        """The failed score of a completion. Each message is logged once for the group."""
        is_late = isinstance(error, BatchTimeoutError)
        failure = NoResultError(Status.TIMEOUT, str(error)) if is_late else failure_from(error)
        if failure.message not in logged:
            logged.add(failure.message)
            details = f"\n{failure.details.rstrip()}" if failure.details else ""
            what = f"scorer {self._scorer.name!r}, group {group.group_id!r}: {failure.status.name}"
            log.warning("%s: %s%s", what, failure.message, details)
        return Score(failure.status, message=failure.message)
