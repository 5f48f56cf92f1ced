"""Submit a step's groups, collect their scores, and agree on them across ranks.

Owns the calls in flight, the step's deadline and the exchange after which every rank holds the same outcome. Knows
nothing of TRL.

    pending = submit(client, groups, timeout_s=300)
    ...                                             log-probabilities, while the service scores
    await pending.arrived()                         at most until the deadline
    outcome = exchange(pending, layout, gather)     the same on every rank
    outcome.raise_failures()                        on all of them, or on none

Legend: N rows on this rank, R rows of the global batch, S scorers, G completions of a group.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from grpo_plugin.groups import Layout
from reward_server.client import RewardClient
from reward_server.errors import DeadlineError, RewardServerError, ScoringFailedError
from reward_server.types import Group, GroupScores, Score, ScorerScores, Status

# gRPC ends a call at its deadline; this is how much later a rank gives up on gRPC itself.
_SLACK_S = 5.0


@dataclass(frozen=True, slots=True)
class CallFailure:
    """A group that has no answer: the error of its call, in a form that travels between ranks."""

    kind: str
    message: str


Answer = GroupScores | CallFailure


@dataclass(slots=True)
class Pending:
    """The groups of one step that this rank submitted, by their number in the global batch."""

    futures: dict[int, Future[GroupScores]]
    submitted_at: float
    deadline: float
    exposed_wait_s: float = 0.0
    latency_s: float = 0.0

    async def arrived(self) -> None:
        """Waits until every call has ended, at most until the deadline; the time it takes is the exposed wait."""
        began = time.perf_counter()
        waiting = [asyncio.wrap_future(future) for future in self.futures.values()]
        if waiting:
            await asyncio.wait(waiting, timeout=max(0.0, self.deadline + _SLACK_S - time.monotonic()))
        for future in waiting:
            if future.done() and not future.cancelled():
                future.exception()  # read below, from the original; asyncio would report it as never retrieved
        self.exposed_wait_s += time.perf_counter() - began

    def answers(self) -> dict[int, Answer]:
        """What became of each group, without waiting: a call that has not ended by now is late."""
        return {number: self._answer(future) for number, future in self.futures.items()}

    def _answer(self, future: Future[GroupScores]) -> Answer:
        try:
            return future.result(timeout=0)
        except Exception as error:  # whatever it is, this rank must not be the only one to raise it
            if not future.done():
                future.cancel()
                waited_s = time.monotonic() - self.submitted_at
                return CallFailure(DeadlineError.__name__, f"no answer within {waited_s:.1f} s")
            return CallFailure(type(error).__name__, str(error))

    def cancel(self) -> None:
        """Ends the calls that are still in flight, on the server too."""
        for future in self.futures.values():
            future.cancel()


def submit(client: RewardClient, groups: Mapping[int, Group], *, timeout_s: float) -> Pending:
    """Sends every group and returns at once. What cannot be sent is a failure of that group, not of this rank."""
    now = time.monotonic()
    pending = Pending({}, submitted_at=now, deadline=now + timeout_s)
    for number, group in groups.items():
        future = _submit_one(client, group, timeout_s)
        future.add_done_callback(lambda _: _note_latency(pending))
        pending.futures[number] = future
    return pending


def _submit_one(client: RewardClient, group: Group, timeout_s: float) -> Future[GroupScores]:
    try:
        return client.submit(group, timeout_s=timeout_s)
    except RewardServerError as error:
        refused: Future[GroupScores] = Future()
        refused.set_exception(error)
        return refused


def _note_latency(pending: Pending) -> None:
    pending.latency_s = max(pending.latency_s, time.monotonic() - pending.submitted_at)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of every group of the global batch; the same on every rank."""

    answers: Mapping[int, Answer]
    layout: Layout
    scorers: Sequence[str]
    latency_s: float
    exposed_wait_s: float

    def scores(self) -> list[GroupScores]:
        """The answers, in the order of the global batch; only after `raise_failures`."""
        return [a for a in (self.answers[n] for n in range(self.layout.groups)) if isinstance(a, GroupScores)]

    def values_RS(self) -> list[list[float]]:
        """A row for each completion of the global batch, a column a scorer; NaN where it is not applicable."""
        return [
            [_value(scorer.scores[index]) for scorer in _in_order(scores, self.scorers)]
            for scores in self.scores()
            for index in range(self.layout.group_size)
        ]

    def statuses(self) -> Counter[Status]:
        """How often each status occurred, over all completions and scorers."""
        return Counter(s.status for scores in self.scores() for scorer in scores.scorers for s in scorer.scores)

    def digests(self) -> set[str]:
        """The configurations that scored this step."""
        return {scores.config_digest for scores in self.scores()}

    def metrics(self) -> dict[str, list[float]]:
        """What the scorers' functions logged by `log_metric`: the values of the groups that this rank owns."""
        owned = self.layout.owned()
        mine = [answer for number in owned if isinstance(answer := self.answers[number], GroupScores)]
        found: dict[str, list[float]] = {}
        for scorer in (scorer for scores in mine for scorer in scores.scorers):
            for name, value in scorer.metrics.items():
                found.setdefault(name, []).append(value)
        return found

    def extra_N(self) -> dict[str, list[Any]]:
        """What the scorers' functions logged by `log_extra`, for the rows of this rank; None where one logged nothing.

        Where two scorers log the same column, the later one's is named scorer/column.
        """
        start = self.layout.first_row
        columns_R: dict[str, list[Any]] = {}
        for scorer in self.scorers:
            logged = [_named(scores, scorer) for scores in self.scores()]
            for name in dict.fromkeys(name for answer in logged for name in answer.extra):
                values = [v for a in logged for v in a.extra.get(name, [None] * len(a.scores))]
                columns_R[f"{scorer}/{name}" if name in columns_R else name] = values
        return {name: values[start : start + self.layout.rows] for name, values in columns_R.items()}

    def raise_failures(self) -> None:
        """Raises ScoringFailedError if any group or score failed: what failed, how often, the first message a kind."""
        failures = list(self._failures())
        if not failures:
            return
        kinds: dict[str, list[str]] = {}
        for kind, message in failures:
            kinds.setdefault(kind, []).append(message)
        lines = [f"  {len(messages)} × {kind}, the first: {messages[0]}" for kind, messages in kinds.items()]
        raise ScoringFailedError(
            f"the reward service failed on {len(failures)} scores or groups of this step's {self.layout.groups} "
            "groups; training stops on every rank:\n" + "\n".join(lines)
        )

    def _failures(self) -> Any:
        for number, answer in sorted(self.answers.items()):
            if isinstance(answer, CallFailure):
                yield answer.kind, f"group {number}: {answer.message}"
                continue
            for name in set(self.scorers) - {scorer.name for scorer in answer.scorers}:
                yield f"scorer {name!r} absent", f"group {number}: the service no longer has this scorer"
            for scorer in answer.scorers:
                for index, score in enumerate(scorer.scores):
                    if score.status.is_failure:
                        what = f"scorer {scorer.name!r} {score.status.name}"
                        yield what, f"group {number}, completion {index}: {score.message}"


def exchange(
    pending: Pending, layout: Layout, scorers: Sequence[str], gather: Callable[[list[Any]], list[Any]]
) -> Outcome:
    """Every rank's answers, on every rank. `gather` concatenates a list over the ranks; all of them call it once."""
    mine = (pending.answers(), pending.latency_s, pending.exposed_wait_s)
    parts = gather([mine])
    return Outcome(
        answers={number: answer for answers, _, _ in parts for number, answer in answers.items()},
        layout=layout,
        scorers=scorers,
        latency_s=max(latency_s for _, latency_s, _ in parts),
        exposed_wait_s=max(wait_s for _, _, wait_s in parts),
    )


def _value(score: Score) -> float:
    return math.nan if score.value is None else score.value


def _in_order(scores: GroupScores, names: Sequence[str]) -> list[ScorerScores]:
    return [_named(scores, name) for name in names]


def _named(scores: GroupScores, name: str) -> ScorerScores:
    return next(scorer for scorer in scores.scorers if scorer.name == name)
