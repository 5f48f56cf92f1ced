"""A scorer that holds everybody until its gate is opened, and writes down whom it serves in which order."""

from __future__ import annotations

import asyncio

from reward_server.execution.fair_queue import current_caller
from reward_server.scorers.base import ExecutorKind, Result, Scorer, ScorerOptions, to_scores
from reward_server.types import Group

opened = asyncio.Event()
served: list[tuple[str, str]] = []
"""The run and the group id of each group, in order."""


class Gated(Scorer[ScorerOptions]):
    """One group at a time, on the event loop."""

    Options = ScorerOptions
    place = ExecutorKind.LOOP
    concurrency = 1

    async def score(self, group: Group) -> Result:
        await opened.wait()
        assert current_caller.get()[0] == group.run_id
        served.append((group.run_id, group.group_id))
        return Result(to_scores([1.0] * len(group), len(group)))
