"""`remote_rewards`: reward functions for a stock TRL trainer that ask a reward service.

Owns the division of TRL's rows into groups, and the one call per group that the functions share. It knows the signature
of a TRL reward function, and imports nothing of TRL.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import uuid
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from reward_server import errors
from reward_server.client.clients import RewardClient
from reward_server.client.credentials import ClientTLS
from reward_server.client.targets import Endpoint
from reward_server.types import Group, GroupScores, ScorerInfo

RewardFunction = Callable[..., Awaitable[list[float | None]]]

_NOT_COLUMNS = frozenset({"prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric"})


def remote_rewards(
    endpoint: Endpoint,
    *,
    num_generations: int | None = None,
    columns: Sequence[str] | None = None,
    timeout_s: float = 60.0,
    connect_timeout_s: float = 30.0,
    token: str | None = None,
    token_file: str | Path | None = None,
    tls: ClientTLS | None = None,
) -> list[RewardFunction]:
    """The `reward_funcs` of a stock `trl.GRPOTrainer` or `RLOOTrainer`: one async function per scorer of the server.

        rewards = remote_rewards("localhost:50051", num_generations=8)
        args = GRPOConfig(reward_weights=[reward.weight for reward in rewards], ...)
        trainer = GRPOTrainer(model, reward_funcs=rewards, args=args, ...)

    The functions of one server share one call per group, and raise ScoringFailedError if a score failed. Rows are
    divided into groups of `num_generations`; without it, a new group begins where the prompt changes. A stock trainer
    shows its reward functions only the rows of its own rank, so that `num_generations` must divide the number of those
    rows; RemoteGRPOTrainer has no such limit. `columns` names the dataset columns to send, by default all of them.
    `token`, `token_file` and `tls` are those of RewardClient.

    Raises UnavailableError if no server answers within `connect_timeout_s`, and ConfigError if a scorer of the server
    compares the completions of a group and `num_generations` is not given.
    """
    client = RewardClient(endpoint, timeout_s=timeout_s, token=token, token_file=token_file, tls=tls)
    info = client.connect(connect_timeout_s)
    aware = [scorer.name for scorer in info.scorers if scorer.group_aware]
    if aware and num_generations is None:
        raise errors.ConfigError(
            f"scorers {aware} compare a group's completions: give num_generations to remote_rewards"
        )
    batch = _Batch(client, num_generations, columns)
    return [_reward_function(batch, index, scorer) for index, scorer in enumerate(info.scorers)]


def _reward_function(batch: _Batch, index: int, scorer: ScorerInfo) -> RewardFunction:
    async def reward(completions: list[Any], log_extra: Any = None, log_metric: Any = None, **row: Any) -> list[Any]:
        results = await batch.scores(completions, row)
        answers = [scores.scorers[index] for scores in results]
        for name in dict.fromkeys(name for answer in answers for name in answer.metrics) if log_metric else ():
            for answer in answers:
                if name in answer.metrics:
                    log_metric(name, answer.metrics[name])
        for name in dict.fromkeys(name for answer in answers for name in answer.extra) if log_extra else ():
            log_extra(name, [v for a in answers for v in a.extra.get(name, [None] * len(a.scores))])
        for scores in results:
            _refuse_failures(scores, index)
        return [score.value for answer in answers for score in answer.scores]

    reward.__name__ = scorer.name
    reward.weight = scorer.weight  # type: ignore[attr-defined]
    return reward


def _refuse_failures(scores: GroupScores, index: int) -> None:
    scorer = scores.scorers[index]
    failures = [score for score in scorer.scores if score.status.is_failure]
    if failures:
        raise errors.ScoringFailedError(
            f"scorer {scorer.name!r} failed on {len(failures)} of {len(scorer.scores)} completions of group "
            f"{scores.group_id!r}; the first: {failures[0].status.name}: {failures[0].message}"
        )


class _Batch:
    """One call per group, which the functions share that TRL calls in turn with the same completions."""

    def __init__(self, client: RewardClient, num_generations: int | None, columns: Sequence[str] | None):
        self._client = client
        self._num_generations = num_generations
        self._columns = columns
        self._run_id = uuid.uuid4().hex
        self._batches = itertools.count()
        self._completions: list[Any] | None = None  # kept, so that no other list gets its identity
        self._pending: list[Future[GroupScores]] = []

    async def scores(self, completions: list[Any], row: dict[str, Any]) -> list[GroupScores]:
        if self._completions is not completions:
            self._pending = [self._client.submit(group) for group in self._groups(completions, row)]
            self._completions = completions
        return await asyncio.gather(*map(asyncio.wrap_future, self._pending))

    def _groups(self, completions: list[Any], row: dict[str, Any]) -> list[Group]:
        prompts, token_ids = row["prompts"], row.get("completion_ids")
        names = [n for n in row if n not in _NOT_COLUMNS and n != "environments"]
        names = [n for n in names if self._columns is None or n in self._columns]
        columns = [{name: row[name][index] for name in names} for index in range(len(prompts))]
        step = getattr(row.get("trainer_state"), "global_step", 0)
        batch = next(self._batches)
        return [
            Group.of_rows(
                prompts[part],
                completions[part],
                None if token_ids is None else token_ids[part],
                columns[part],
                run_id=self._run_id,
                step=step,
                group_id=f"{self._run_id}/{os.getpid()}/{batch}/{index}",
            )
            for index, part in enumerate(self._parts(prompts))
        ]

    def _parts(self, prompts: list[Any]) -> list[slice]:
        """The slices of the rows that form groups."""
        count, size = len(prompts), self._num_generations
        if size is None:
            starts = [i for i in range(count) if i == 0 or prompts[i] != prompts[i - 1]]
        elif count % size:
            raise errors.ConfigError(
                f"num_generations ({size}) must divide the rows of this rank ({count}), or a group is split: change "
                "per_device_train_batch_size, or use grpo_plugin.RemoteGRPOTrainer, which always scores whole groups"
            )
        else:
            starts = list(range(0, count, size))
        return [slice(start, end) for start, end in itertools.pairwise([*starts, count])]
