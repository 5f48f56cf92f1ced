"""Quarantine: a completion that has cost two worker processes their lives is not run again.

Owns the count of deaths, by content and in bounded memory, and the executor that keeps it. Knows nothing of processes:
a NoResultError with `cost_worker` tells it that a worker process was lost.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict

from reward_server.execution.executors import Executor
from reward_server.execution.results import NoResultError, TimedResult
from reward_server.types import Group, Status

_MAX_DEATHS = 2
# A key and its count take about 200 bytes. Beyond this number the key that was seen least recently is forgotten.
_MAX_KEYS = 10_000


class QuarantinedSiblingError(NoResultError):
    """The group was not run since one of its completions is in quarantine; the others may be scored alone."""

    def __init__(self) -> None:
        super().__init__(Status.FAILED, "a completion of this group is in quarantine")


class QuarantineExecutor:
    """Refuses groups that are in quarantine, and counts the deaths of the others."""

    def __init__(self, inner: Executor, group_aware: bool):
        """With `group_aware` a group is counted as a whole, since its completions are never scored alone."""
        self._inner = inner
        self.quarantine = Quarantine(group_aware)
        self._group_aware = group_aware

    async def run(self, group: Group) -> TimedResult:
        """Raises what the inner executor raises, and NoResultError for a group that it does not run."""
        quarantine = self.quarantine
        if not quarantine.is_empty and quarantine.contains(group):
            raise self._refusal(group)
        try:
            timed = await self._inner.run(group)
        except NoResultError as failure:
            if failure.cost_worker:
                quarantine.count_death(group)
            raise
        if not quarantine.is_empty:
            quarantine.clear(group)
        return timed

    def _refusal(self, group: Group) -> NoResultError:
        if len(group) > 1 and not self._group_aware:
            return QuarantinedSiblingError()
        return NoResultError(
            Status.FAILED,
            f"not run again: it has cost {_MAX_DEATHS} worker processes their lives, by crashing or by exceeding "
            "timeout_s; the server forgets this when it reloads its configuration",
            retry_alone=False,
        )


class Quarantine:
    """The deaths of worker processes that one scorer's completions caused, or its groups if it is group-aware.

    A death that several completions share makes each of them a suspect, however often it happens: the one at fault
    causes another death when it is scored alone, and the other completions get their scores. A score clears its
    completion.
    """

    def __init__(self, group_aware: bool = False, max_keys: int = _MAX_KEYS):
        self._group_aware = group_aware
        self._max_keys = max_keys
        self._deaths: OrderedDict[bytes, int] = OrderedDict()

    @property
    def is_empty(self) -> bool:
        """Whether no death is known. This is the usual case, in which no key needs to be computed."""
        return not self._deaths

    def contains(self, group: Group) -> bool:
        """Whether the group or, if they may be scored alone, one of its completions is in quarantine."""
        return any(self._deaths.get(key, 0) >= _MAX_DEATHS for key in self._keys(group))

    def count_death(self, group: Group) -> None:
        """Counts the death of the worker process that ran the group."""
        keys = self._keys(group)
        for key in keys:
            before = self._deaths.pop(key, 0)  # it is added again at the end, as the most recent key
            self._deaths[key] = max(before, 1) if len(keys) > 1 else before + 1
        while len(self._deaths) > self._max_keys:
            self._deaths.popitem(last=False)

    def clear(self, group: Group) -> None:
        """Forgets what a group or its completions caused: they have a score."""
        for key in self._keys(group):
            self._deaths.pop(key, None)

    def _keys(self, group: Group) -> list[bytes]:
        shared = (group.prompt, group.columns)
        parts = [group.completions] if self._group_aware else [(completion,) for completion in group.completions]
        return [
            hashlib.blake2b(repr((shared, part)).encode("utf-8", "replace"), digest_size=16).digest() for part in parts
        ]
