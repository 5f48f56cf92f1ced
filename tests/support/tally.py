"""An executor for tests of what wraps executors: it scores, writes down what it was asked for, and can be held."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from reward_server.execution.results import TimedResult
from reward_server.scorers.base import Result, to_scores
from reward_server.types import Group


def lengths(texts: list[str]) -> Result:
    """Scores each text by its length."""
    return Result(to_scores([float(len(text)) for text in texts], len(texts)))


class Tally:
    """Answers by a function of the group's texts. With `hold` it does not answer before `let_go` is set."""

    def __init__(self, answer: Callable[[list[str]], Result] = lengths, hold: bool = False):
        self.calls: list[list[str]] = []
        """The texts of each group that was run."""
        self.let_go = asyncio.Event()
        self.cancelled = False
        self._answer = answer
        if not hold:
            self.let_go.set()

    async def run(self, group: Group) -> TimedResult:
        texts = [str(content) for content in group.contents()]
        self.calls.append(texts)
        try:
            await self.let_go.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        return TimedResult(self._answer(texts), 1.0, 2.0)


def values(timed: TimedResult) -> list[float | None]:
    return [score.value for score in timed.result.scores]


async def turns(count: int = 10) -> None:
    """Lets every task of the event loop run for a few steps."""
    for _ in range(count):
        await asyncio.sleep(0)
