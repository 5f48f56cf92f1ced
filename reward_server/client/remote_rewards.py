"""`remote_rewards`: reward functions for a stock TRL trainer that ask a reward service.

Owns what a function returns, logs and refuses. `reward_calls` makes groups and calls. It knows the signature of a TRL
reward function, and imports nothing of TRL.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import itertools
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from reward_server import errors
from reward_server.client.clients import RewardClient
from reward_server.client.credentials import ClientTLS
from reward_server.client.reward_calls import Call, Grouping, RewardCalls
from reward_server.client.targets import Endpoint
from reward_server.types import GroupScores, Score, ScorerInfo, ScorerScores

log = logging.getLogger("reward_server.client")

Scores = list[float | None]
ON_FAILURE = ("raise", "none")


def remote_rewards(
    endpoint: Endpoint,
    *,
    num_generations: int | None = None,
    group_per_call: bool = False,
    sync: bool = False,
    on_failure: Literal["raise", "none"] = "raise",
    weighted: bool = False,
    columns: Sequence[str] | None = None,
    timeout_s: float = 60.0,
    connect_timeout_s: float = 30.0,
    token: str | None = None,
    token_file: str | Path | None = None,
    tls: ClientTLS | None = None,
) -> list[Reward]:
    """The `reward_funcs` of a stock `trl.GRPOTrainer` or `RLOOTrainer`: one async function per scorer of the server.

        rewards = remote_rewards("localhost:50051", num_generations=8)
        args = GRPOConfig(reward_weights=[reward.weight for reward in rewards], ...)
        trainer = GRPOTrainer(model, reward_funcs=rewards, args=args, ...)

    The functions of one server share one call per group. Rows are divided into groups of `num_generations`; without it,
    a new group begins where the prompt changes. A stock trainer shows its reward functions only the rows of its own
    rank, so that `num_generations` must divide the number of those rows; RemoteGRPOTrainer has no such limit. With
    `group_per_call` all rows of a call are one group, of any size, as `AsyncGRPOTrainer` calls.

    A failed score is never a number. The function raises ScoringFailedError or, with `on_failure="none"`, every
    function returns None for that completion, which TRL's trainers then leave out of the baseline. Groups that the
    service did not answer fail alike; what only the caller can mend (a missing column, a wrong token) always raises.

    The functions may be pickled; each process connects at its first call. With `sync` they are ordinary functions that
    wait, in any thread and also inside a running event loop, for trainers that know no async ones. `weighted`
    multiplies scores by the service's weights, for trainers that have no `reward_weights`; `weight` is then 1.
    `columns` names the dataset columns to send, by default all of them. `token`, `token_file` and `tls` are those of
    RewardClient.

    Raises UnavailableError if no server answers within `connect_timeout_s`, and ConfigError if a scorer of the server
    compares the completions of a group and neither `num_generations` nor `group_per_call` is given.
    """
    if on_failure not in ON_FAILURE:
        raise errors.ConfigError(f"on_failure must be one of {', '.join(ON_FAILURE)}, not {on_failure!r}")
    grouping = Grouping(num_generations, group_per_call)
    connect = functools.partial(
        RewardClient, endpoint, timeout_s=timeout_s, token=token, token_file=token_file, tls=tls
    )
    with connect() as client:
        scorers = client.connect(connect_timeout_s).scorers
    _check_grouping(grouping, scorers)
    calls = RewardCalls(connect, len(scorers), grouping, columns)
    kind = SyncReward if sync else AsyncReward
    return [kind(calls, index, scorer, on_failure, weighted) for index, scorer in enumerate(scorers)]


def _check_grouping(grouping: Grouping, scorers: Iterable[ScorerInfo]) -> None:
    aware = [scorer.name for scorer in scorers if scorer.group_aware]
    if aware and not grouping.is_known:
        raise errors.ConfigError(
            f"scorers {aware} compare a group's completions: give num_generations to remote_rewards"
        )


class Reward:
    """A reward function of TRL's signature for one scorer of a server. `weight` is what the server weighs it by."""

    __name__: str

    def __init__(self, calls: RewardCalls, index: int, scorer: ScorerInfo, on_failure: str, weighted: bool):
        self.__name__ = scorer.name
        self.weight = 1.0 if weighted else scorer.weight
        self._factor = scorer.weight if weighted else 1.0
        self._calls = calls
        self._index = index
        self._on_failure = on_failure

    def _scores(self, calls: Sequence[Call], row: dict[str, Any]) -> Scores:
        """The scores of all rows, whose calls have ended."""
        answers = [self._answer(call) for call in calls]
        _log(answers, row)
        return [score for answer in answers for score in answer.scores]

    def _answer(self, call: Call) -> _Answer:
        try:
            scores = call.future.result(timeout=0)
        except errors.RewardServerError as error:
            self._refuse(error)
            return _Answer([None] * call.rows)
        scorer = scores.scorers[self._index]
        failures = [score for score in scorer.scores if score.status.is_failure]
        if failures:
            self._refuse(_failure(scorer, failures, scores.group_id))
        failed = _failed_rows(scores) if self._on_failure == "none" else ()
        values = [
            None if score.value is None or number in failed else score.value * self._factor
            for number, score in enumerate(scorer.scores)
        ]
        return _Answer(values, scorer.metrics, scorer.extra)

    def _refuse(self, failure: errors.RewardServerError) -> None:
        """Raises the failure, or warns that its completions have no reward."""
        if self._on_failure == "raise" or isinstance(failure, errors.CALLERS_FAULTS):
            raise failure
        log.warning("%s; on_failure is 'none': these completions have no reward", failure)


class AsyncReward(Reward):
    """An async reward function."""

    async def __call__(self, completions: list[Any], **row: Any) -> Scores:
        calls = self._calls.submit(self._index, completions, row)
        await asyncio.gather(*(asyncio.wrap_future(call.future) for call in calls), return_exceptions=True)
        return self._scores(calls, row)

    # By these, `inspect` takes it for the function that it behaves as. TRL before 1.14 asks `inspect` alone whether a
    # reward function is async.
    __code__ = __call__.__code__
    __defaults__ = __call__.__defaults__
    __kwdefaults__ = __call__.__kwdefaults__


class SyncReward(Reward):
    """A reward function that waits for its scores."""

    def __call__(self, completions: list[Any], **row: Any) -> Scores:
        calls = self._calls.submit(self._index, completions, row)
        concurrent.futures.wait([call.future for call in calls])  # each ends by the deadline of its call
        return self._scores(calls, row)


@dataclass(frozen=True, slots=True)
class _Answer:
    """What one scorer said of one group."""

    scores: Scores
    metrics: Mapping[str, float] = field(default_factory=dict)
    extra: Mapping[str, Sequence[Any]] = field(default_factory=dict)


def _failed_rows(scores: GroupScores) -> set[int]:
    """The completions on which some scorer failed."""
    rows = (enumerate(scorer.scores) for scorer in scores.scorers)
    return {number for number, score in itertools.chain.from_iterable(rows) if score.status.is_failure}


def _failure(scorer: ScorerScores, failures: Sequence[Score], group_id: str) -> errors.ScoringFailedError:
    return errors.ScoringFailedError(
        f"scorer {scorer.name!r} failed on {len(failures)} of {len(scorer.scores)} completions of group {group_id!r}; "
        f"the first: {failures[0].status.name}: {failures[0].message}"
    )


def _log(answers: Sequence[_Answer], row: Mapping[str, Any]) -> None:
    """Hands on what the scorers logged, to a trainer that takes it."""
    log_metric, log_extra = row.get("log_metric"), row.get("log_extra")
    if log_metric is not None:
        for name in dict.fromkeys(name for answer in answers for name in answer.metrics):
            for answer in answers:
                if name in answer.metrics:
                    log_metric(name, answer.metrics[name])
    if log_extra is not None:
        for name in dict.fromkeys(name for answer in answers for name in answer.extra):
            log_extra(name, [v for a in answers for v in a.extra.get(name, [None] * len(a.scores))])
