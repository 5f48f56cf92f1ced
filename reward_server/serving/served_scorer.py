"""A loaded scorer as the server serves it: its description for callers, and the chain of executors around it.

Owns the order of the chain. A group goes down once:

    metrics and tracing ( cache ( one by one on failure ( quarantine ( the scorer's own executor ))))

The quarantine is there for worker processes only, whose deaths it counts. It is inside the one-by-one step since it has
to see each completion that is tried alone. A part of a composite has the same chain without metrics, which count it as
its composite. Knows nothing of gRPC.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

from reward_server.cache.cache import Cache
from reward_server.execution.batch_executor import BatchExecutor
from reward_server.execution.executors import Executor, LoopExecutor, ScorerExecutor, ThreadExecutor, WorkerExecutor
from reward_server.execution.one_by_one import OneByOneExecutor
from reward_server.execution.quarantine import QuarantineExecutor
from reward_server.execution.results import ScorerDescription, TimedResult
from reward_server.execution.worker_pool import WorkerPool
from reward_server.observability.metrics import Metrics
from reward_server.observability.observed import ObservedExecutor
from reward_server.scorers.base import ExecutorKind, Scorer
from reward_server.scorers.batched import BatchedScorer
from reward_server.types import Group, ScorerInfo, ScorerScores


class ServedScorer:
    """A scorer, what callers are told of it, and the executor through which its groups go."""

    def __init__(self, scorer: Scorer, executor: ScorerExecutor, description: ScorerDescription, cache: Cache | None):
        """`executor` holds the loaded scorer. The cache is used if the scorer is deterministic."""
        self.scorer = scorer
        self.executor = executor
        self.info = ScorerInfo(
            scorer.name,
            scorer.options.type,
            description.version,
            scorer.options.weight,
            description.deterministic,
            description.group_aware,
            description.required_columns,
        )
        chain: Executor = executor
        if isinstance(executor, WorkerExecutor):
            chain = QuarantineExecutor(chain, description.group_aware)
        chain = OneByOneExecutor(chain, scorer.name, description.group_aware)
        if cache is not None and description.deterministic:
            chain = cache.around(chain, scorer, description)
        self._unobserved = chain
        self._run = chain.run

    def observe(self, metrics: Metrics) -> None:
        """Counts and traces the groups from now on."""
        self._run = ObservedExecutor(self._unobserved, self.info.name, metrics).run

    def run(self, group: Group) -> Coroutine[Any, Any, TimedResult]:
        """Scores a group. A failure is a status; raises only InvalidGroupError."""
        return self._run(group)

    def scores(self, timed: TimedResult) -> ScorerScores:
        """A result as the scorer's scores in the response."""
        info, result = self.info, timed.result
        return ScorerScores(info.name, info.version, info.weight, result.scores, result.metrics, result.extra)


def executor_for(scorer: Scorer, pool: WorkerPool | None) -> ScorerExecutor:
    """The executor of the kind that a scorer asks for. Scorers in worker processes need the pool."""
    if scorer.place is ExecutorKind.LOOP:
        return LoopExecutor(scorer)
    if scorer.place is ExecutorKind.THREAD:
        return ThreadExecutor(scorer)
    if isinstance(scorer, BatchedScorer):
        return BatchExecutor(scorer)
    assert pool is not None
    return WorkerExecutor(scorer, pool)
