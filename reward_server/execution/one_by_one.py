"""Isolation of failures: if a group fails as a whole, its completions are scored one by one.

Owns the step at which failures become scores with a failed status, and their log entries. A completion that fails
loses its own score only; the other completions of the group keep theirs. Knows nothing of where a scorer runs.
"""

from __future__ import annotations

import dataclasses
import logging

from reward_server.execution.executors import Executor
from reward_server.execution.quarantine import QuarantinedSiblingError
from reward_server.execution.results import NoResultError, TimedResult, join_results
from reward_server.execution.tasks import all_of
from reward_server.scorers.base import Result, failed
from reward_server.types import Group

log = logging.getLogger("reward_server")


class OneByOneExecutor:
    """Scores a group as a whole and, if that fails, its completions one by one. Never raises NoResultError."""

    def __init__(self, inner: Executor, scorer: str, group_aware: bool):
        """`scorer` is its name, for the log. The completions of a group-aware scorer are never scored alone."""
        self._inner = inner
        self._scorer = scorer
        self._group_aware = group_aware

    async def run(self, group: Group) -> TimedResult:
        """Raises InvalidGroupError where the scorer blames the group itself."""
        try:
            return await self._inner.run(group)
        except NoResultError as failure:
            first = failure
        if not isinstance(first, QuarantinedSiblingError):  # its completion is logged, without the whole group
            self._log(first, group)
        if self._group_aware or not first.retry_alone or len(group) == 1:
            return TimedResult(Result(failed(len(group), first.status, first.message)))
        return await self._run_one_by_one(group, first)

    async def _run_one_by_one(self, group: Group, first: NoResultError) -> TimedResult:
        alone = [dataclasses.replace(group, completions=(completion,)) for completion in group.completions]
        answers = await all_of(*(self._run_alone(single, index, first) for index, single in enumerate(alone)))
        return TimedResult(
            join_results([timed.result for timed in answers]),
            max(timed.queued_s for timed in answers),
            max(timed.compute_s for timed in answers),
        )

    async def _run_alone(self, group: Group, index: int, first: NoResultError) -> TimedResult:
        try:
            return await self._inner.run(group)
        except NoResultError as failure:
            if failure.message != first.message:  # the same failure is in the log already, with its traceback
                self._log(failure, group, f", completion {index} alone")
            return TimedResult(Result(failed(1, failure.status, failure.message)))

    def _log(self, failure: NoResultError, group: Group, which: str = "") -> None:
        what = f"scorer {self._scorer!r}, group {group.group_id!r}{which}: {failure.status.name}"
        log.warning("%s: %s%s", what, failure.message, f"\n{failure.details.rstrip()}" if failure.details else "")
