"""Scores many groups, several at a time, with a configuration in this process or with a running server.

Owns how many groups are in flight and the deadline. Knows nothing of what the groups are for.

    async with Scoring.of(config) as scoring:
        async for index, scores in scoring.run(groups):
            ...
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from reward_server.client import AsyncRewardClient
from reward_server.config import ServerConfig
from reward_server.errors import DeadlineError, InvalidGroupError
from reward_server.serving.scorer_set import ScorerSet
from reward_server.types import Group, GroupScores, ServerInfo

IN_FLIGHT = 16
_CONNECT_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Scoring:
    """Loaded scorers, wherever they are. `score` raises InvalidGroupError for a group that cannot be scored."""

    info: ServerInfo
    score: Callable[[Group], Awaitable[GroupScores]]
    timeout_s: float

    @classmethod
    @asynccontextmanager
    async def of(cls, source: ServerConfig | AsyncRewardClient, timeout_s: float = 300.0) -> AsyncIterator[Scoring]:
        """Loads a configuration's scorers without its cache, or asks a server what it is; ends them afterwards.

        `timeout_s` is what one group may take. Raises ConfigError, ScorerLoadError, UnavailableError.
        """
        if isinstance(source, AsyncRewardClient):
            async with source:
                info = await source.info(min(timeout_s, _CONNECT_TIMEOUT_S))
                yield cls(info, lambda group: source.score(group, timeout_s=timeout_s), timeout_s)
            return
        scorers = ScorerSet(source, keep=False)
        await scorers.load()
        try:
            yield cls(scorers.info, _admitted(scorers), timeout_s)
        finally:
            await scorers.close()

    async def run(self, groups: Iterable[Group], in_flight: int = IN_FLIGHT) -> AsyncIterator[tuple[int, GroupScores]]:
        """The groups' scores with their indices, in the order in which they are ready. Raises DeadlineError."""
        waiting = enumerate(groups)
        running: set[asyncio.Task[tuple[int, GroupScores]]] = set()
        try:
            while True:
                while len(running) < in_flight and (following := next(waiting, None)) is not None:
                    running.add(asyncio.create_task(self._one(*following)))
                if not running:
                    return
                done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    yield task.result()
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def all(self, groups: list[Group]) -> list[GroupScores]:
        """The groups' scores in the groups' order."""
        found = {index: scores async for index, scores in self.run(groups)}
        return [found[index] for index in range(len(groups))]

    async def _one(self, index: int, group: Group) -> tuple[int, GroupScores]:
        try:
            async with asyncio.timeout(self.timeout_s):
                return index, await self.score(group)
        except TimeoutError as error:
            raise DeadlineError(
                f"group {group.group_id!r} was not scored within {self.timeout_s:g} s; see --timeout-s"
            ) from error


def _admitted(scorers: ScorerSet) -> Callable[[Group], Awaitable[GroupScores]]:
    async def score(group: Group) -> GroupScores:
        try:
            scorers.admit(group)
        except InvalidGroupError as error:
            raise InvalidGroupError(f"group {group.group_id!r}: {error}") from error
        return await scorers.score(group)

    return score
