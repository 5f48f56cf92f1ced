"""The executor of a composite scorer: it runs nothing itself, but asks the executors of the composite's parts.

Owns the asking and the times. How the parts' answers become the composite's score is the composite scorer's.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Sequence
from typing import Protocol

from reward_server.execution.executors import Executor
from reward_server.execution.results import ScorerDescription, TimedResult, validated
from reward_server.scorers.base import Result
from reward_server.scorers.composite import CompositeScorer
from reward_server.types import Group, ScorerInfo

_SAVE_INTERVAL_S = 60.0


class Part(Executor, Protocol):
    """A scorer that is part of a composite, with all the executors around it: its failures are statuses."""

    info: ScorerInfo


class CompositeExecutor:
    """A composite and its parts, which their owner loads and closes. It saves what the composite has gathered."""

    def __init__(self, scorer: CompositeScorer, parts: Sequence[Part], saves: bool = True):
        self._scorer = scorer
        self._parts = parts
        self._saves = saves
        self._saved_at = time.monotonic()
        self._saving: asyncio.Future[None] | None = None

    async def load(self) -> ScorerDescription:
        await asyncio.to_thread(self._scorer.load)
        infos = [part.info for part in self._parts]
        versions = hashlib.sha256(json.dumps([info.version for info in infos]).encode()).hexdigest()[:12]
        return ScorerDescription(
            f"{self._scorer.version}/{versions}",
            tuple(dict.fromkeys(column for info in infos for column in info.required_columns)),
            all(info.deterministic for info in infos),
            any(info.group_aware for info in infos),
        )

    async def run(self, group: Group) -> TimedResult:
        """The composite's result; its queueing time is the longest of its parts'."""
        began, waits = time.perf_counter(), [0.0]

        async def ask(index: int, part: Group) -> Result:
            timed = await self._parts[index].run(part)
            waits.append(timed.queued_s)
            return timed.result

        result = validated(await self._scorer.compose(group, ask), len(group))
        self._save_from_time_to_time()
        return TimedResult(result, max(waits), max(0.0, time.perf_counter() - began - max(waits)))

    async def close(self) -> None:
        if self._saving is not None:
            await self._saving
        if self._saves:
            await asyncio.to_thread(self._scorer.save_gathered)

    def _save_from_time_to_time(self) -> None:
        """Saves in a thread, since it writes a file. A server that is killed loses what it gathered since."""
        is_due = self._saves and time.monotonic() - self._saved_at > _SAVE_INTERVAL_S
        if is_due and (self._saving is None or self._saving.done()):
            self._saved_at = time.monotonic()
            self._saving = asyncio.ensure_future(asyncio.to_thread(self._scorer.save_gathered))
