"""The reward service as adapters ask it: rows of a trainer become samples or groups, and scores become rewards.

Owns one connection for each set of settings and process, the check of settings against the server at the first call,
and what counts as no reward: then `NoRewardError` is raised, never a number returned.

    service = Service.of(Settings.read(arguments), trainer="verl")
    reward = await service.reward(Row(prompt, completion, columns))              one completion
    rewards = await service.group_rewards([Row(...), ...])                       a whole group, one reward each
    reward.total, reward.scores
"""

from __future__ import annotations

import asyncio
import functools
import os
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from reward_server.adapters.settings import Settings
from reward_server.client import CohortClient, RewardClient
from reward_server.client.plain import plain
from reward_server.errors import ConfigError, RewardServerError, ScoringFailedError
from reward_server.types import Completion, Content, Group, GroupScores, Sample, ScorerScores, ServerInfo, Status


class NoRewardError(ScoringFailedError):
    """A completion has no reward: a score has failed, or no scorer has anything to say. It must not become a number."""


@dataclass(frozen=True, slots=True)
class Row:
    """One completion as a trainer has it. With a `group_id`, `group_size` rows of that name are scored together."""

    prompt: Content
    completion: Content
    columns: Mapping[str, Any] = field(default_factory=dict)
    group_id: str = ""
    group_size: int = 1
    index: int | None = None
    step: int = 0


@dataclass(frozen=True, slots=True)
class Reward:
    """The weighted sum of a completion's scores, and each score by its scorer; NaN where a scorer does not apply."""

    total: float
    scores: Mapping[str, float]


class Service:
    """The reward server of some settings, connected at the first call."""

    def __init__(self, settings: Settings, trainer: str):
        self._settings = settings
        self._trainer = trainer
        self.run_id = settings.run_id or trainer  # the same in all processes, whose samples have to meet
        arguments = {"timeout_s": settings.timeout_s, "token_file": settings.token_file, "tls": settings.client_tls}
        self._samples = CohortClient(settings.endpoint, **arguments)  # type: ignore[arg-type]
        self._groups = RewardClient(settings.endpoint, **arguments)  # type: ignore[arg-type]
        self._infos: dict[int, ServerInfo] = {}  # by process ID
        self._connecting = threading.Lock()
        self._failure: RewardServerError | None = None
        self._failed_at = 0.0

    @staticmethod
    @functools.cache
    def of(settings: Settings, trainer: str) -> Service:
        """The one of these settings in this process. Raises ConfigError for files that cannot be read."""
        return Service(settings, trainer)

    def reward_now(self, row: Row) -> Reward:
        """`reward` for code that is not async."""
        self._refuse_group_aware(row, self._connected())
        return self._reward(self._samples.submit(self._sample(row)).result().scores, 0)

    async def reward(self, row: Row) -> Reward:
        """The reward of a completion. Raises NoRewardError, ConfigError and the errors of CohortClient."""
        self._refuse_group_aware(row, await self._info())
        answer = await asyncio.wrap_future(self._samples.submit(self._sample(row)))
        return self._reward(answer.scores, 0)

    async def group_rewards(self, rows: Sequence[Row]) -> list[Reward | NoRewardError]:
        """The rewards of a whole group's rows, and what a row has in place of one. Raises as `reward`, but for that."""
        await self._info()
        scores = await asyncio.wrap_future(self._groups.submit(self._group(rows)))
        return [self._reward_or_error(scores, index) for index in range(len(rows))]

    async def group_aware(self) -> list[str]:
        """The scorers of the settings that compare the completions of a group."""
        return self._aware(await self._info())

    def columns(self, keys: Mapping[str, Any]) -> dict[str, Any]:
        """The columns to send, of the keys that a trainer has. Raises ConfigError for a key that it does not have."""
        pairs = [(key, key) for key in keys] if self._settings.columns is None else self._settings.columns
        if missing := [key for _, key in pairs if key not in keys]:
            raise ConfigError(
                f"columns names the keys {missing}, and {self._trainer} passed {sorted(keys)}: add them to the data "
                "set, or correct columns"
            )
        return {column: plain(keys[key]) for column, key in pairs}

    # ------------------------------------------------------------------------------------------------------- the wire

    def _sample(self, row: Row) -> Sample:
        return Sample(
            row.prompt,
            Completion(row.completion, columns=row.columns),
            of=row.group_size,
            index=row.index or 0,
            sample_id="" if row.index is not None or not row.group_id else uuid.uuid4().hex,
            run_id=self.run_id,
            step=row.step,
            group_id=row.group_id,
            scorers=self._settings.scorers,
            gather_s=self._settings.gather_s,
            score_incomplete=self._settings.score_incomplete,
        )

    def _group(self, rows: Sequence[Row]) -> Group:
        return Group.of_rows(
            [row.prompt for row in rows],
            [row.completion for row in rows],
            columns=[row.columns for row in rows],
            run_id=self.run_id,
            step=rows[0].step,
            group_id=rows[0].group_id or uuid.uuid4().hex,
            scorers=self._settings.scorers,
        )

    async def _info(self) -> ServerInfo:
        known = self._infos.get(os.getpid())
        return known if known is not None else await asyncio.to_thread(self._connected)

    def _connected(self) -> ServerInfo:
        """The server's info, compared with the settings once a process.

        Raises ConfigError, or why no server answers: to all calls that waited for that, and not to one after another.
        """
        came_at = time.monotonic()
        with self._connecting:
            if os.getpid() not in self._infos:
                if self._failure is not None and self._failed_at > came_at:
                    raise self._failure
                try:
                    self._infos[os.getpid()] = self._compared(self._groups.connect(self._settings.connect_timeout_s))
                except RewardServerError as error:
                    self._failure, self._failed_at = error, time.monotonic()
                    raise
        return self._infos[os.getpid()]

    def _compared(self, info: ServerInfo) -> ServerInfo:
        known = [each.name for each in info.scorers]
        weighted = [name for name, _ in self._settings.weights]
        scorers, validating = self._settings.scorers, self._settings.validation_scorers
        for what, names in (("scorers", scorers), ("validation_scorers", validating), ("weights", weighted)):
            if unknown := [name for name in names if name not in known]:
                raise ConfigError(f"{what} names {unknown}, and the server at {self._groups.endpoint} has {known}")
        return info

    def _aware(self, info: ServerInfo) -> list[str]:
        chosen = self._settings.scorers
        return [each.name for each in info.scorers if each.group_aware and (not chosen or each.name in chosen)]

    def _refuse_group_aware(self, row: Row, info: ServerInfo) -> None:
        if not row.group_id and (aware := self._aware(info)):
            raise ConfigError(
                f"scorers {aware} compare the completions of a group, and {self._trainer} shows one completion without "
                "its group's name: use the adapter's form for groups, or leave them out by the setting scorers "
                f"(REWARD_SCORERS); the server has {[each.name for each in info.scorers]}"
            )

    # ---------------------------------------------------------------------------------------------------- the rewards

    def _reward_or_error(self, scores: GroupScores, index: int) -> Reward | NoRewardError:
        try:
            return self._reward(scores, index)
        except NoRewardError as error:
            return error

    def _reward(self, scores: GroupScores, index: int) -> Reward:
        weights = dict(self._settings.weights)
        total, applies = 0.0, False
        for scorer in scores.scorers:
            value = _value(scorer, index, scores.group_id)
            if value is not None:
                applies = True
                total += weights.get(scorer.name, scorer.weight) * value
        if not applies:
            raise NoRewardError(f"no scorer has anything to say of completion {index} of group {scores.group_id!r}")
        values = {scorer.name: scorer.scores[index].value for scorer in scores.scorers}
        return Reward(total, {name: float("nan") if value is None else value for name, value in values.items()})


def _value(scorer: ScorerScores, index: int, group_id: str) -> float | None:
    score = scorer.scores[index]
    if score.status is Status.NOT_APPLICABLE:
        return None
    if score.value is None:
        raise NoRewardError(
            f"scorer {scorer.name!r} failed on completion {index} of group {group_id!r}: {score.status.name}: "
            f"{score.message}"
        )
    return score.value


def total_of(reward: Reward | NoRewardError) -> float:
    """The reward as one number. Raises what there is in place of one."""
    if isinstance(reward, NoRewardError):
        raise reward
    return reward.total
