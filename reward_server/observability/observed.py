"""The outermost executor around a scorer: counts and traces each of its groups.

Owns the step between a served group and the metrics and spans of its scorer. Knows nothing of what it wraps.
"""

from __future__ import annotations

from reward_server.execution.executors import Executor
from reward_server.execution.results import TimedResult
from reward_server.observability import tracing
from reward_server.observability.metrics import Metrics
from reward_server.types import Group


class ObservedExecutor:
    """Counts groups, times and statuses of one scorer, and gives each group a span if the process is traced."""

    def __init__(self, inner: Executor, scorer: str, metrics: Metrics):
        """`scorer` is its name."""
        self._inner = inner
        self._metrics = metrics.of_scorer(scorer)
        self._attributes = {"scorer": scorer}

    async def run(self, group: Group) -> TimedResult:
        """Raises what the inner executor raises."""
        metrics = self._metrics
        metrics.groups.inc()
        try:
            timed = await (self._run_traced(group) if tracing.is_on() else self._inner.run(group))
            metrics.scored(timed)
            return timed
        finally:
            metrics.groups.dec()

    async def _run_traced(self, group: Group) -> TimedResult:
        with tracing.span("reward.scorer", self._attributes) as span:
            timed = await self._inner.run(group)
            span.set_attributes({"queued_s": timed.queued_s, "compute_s": timed.compute_s})
            return timed
