"""One deployment a scorer: the scorer in its own replicas, and the executor that reaches them from the one in front.

Owns the call between the two. The one in front is an ordinary replica whose scorers run elsewhere: admission, digest,
weights and the order of the answer are its own, so that it answers as a plain server does.

A part knows one scorer of the configuration. The digest of its answer says what scored it, and an answer of anything
else than the front has loaded is refused, so that no response is joined from two configurations.
"""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import grpc
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from reward_server.config import digest_of
from reward_server.errors import ConfigError, OverloadedError, ScorerLoadError, UnavailableError
from reward_server.execution.fair_queue import Caller, current_caller
from reward_server.execution.results import ScorerDescription, TimedResult
from reward_server.observability import logs
from reward_server.observability.metrics import Metrics
from reward_server.ray.configuration import config_of
from reward_server.ray.metrics import RayMetrics
from reward_server.scorers.base import Result, Scorer
from reward_server.serving.scorer_set import ScorerSet
from reward_server.types import Group, GroupScores

# The deployments of an application start together, and a large model takes minutes to load.
_LOAD_TIMEOUT_S = 900.0


class Part:
    """A replica of one scorer."""

    def __init__(self, name: str):
        logs.set_up("text", "info")
        self._name = name
        self._loaded: ScorerSet | None = None
        self._metrics: asyncio.Task[None] | None = None

    async def reconfigure(self, user_config: Any) -> None:
        """Loads the scorer. Raises ConfigError or ScorerLoadError, and ConfigError for a second configuration."""
        if self._loaded is not None:
            raise ConfigError("with split, change the application's `config` argument and not a user_config")
        config = config_of(user_config)
        own = tuple(scorer for scorer in config.scorers if scorer.name == self._name)
        scorers = ScorerSet(config.model_copy(update={"scorers": own}))
        await scorers.load()
        metrics = Metrics()
        scorers.observe(metrics)
        metrics.follow(scorers.counters)
        self._metrics = asyncio.create_task(RayMetrics(metrics.registry()).keep_fresh())
        self._loaded = scorers

    async def describe(self) -> ScorerDescription:
        """What is known of the scorer once it is loaded."""
        (info,) = self._scorers.info.scorers
        return ScorerDescription(info.version, info.required_columns, info.deterministic, info.group_aware)

    async def score(self, group: Group, caller: Caller) -> GroupScores:
        """The scores of the one scorer. Raises InvalidGroupError."""
        current_caller.set(caller)
        return await self._scorers.score(group)

    @property
    def _scorers(self) -> ScorerSet:
        assert self._loaded is not None, "Ray calls only replicas that have started"
        return self._loaded

    async def __del__(self) -> None:
        if self._metrics is not None:
            self._metrics.cancel()
        if self._loaded is not None:
            await self._loaded.close()


class PartExecutor:
    """Runs the groups of one scorer in its deployment."""

    def __init__(self, scorer: Scorer, part: DeploymentHandle):
        self._name = scorer.name
        self._options = scorer.options
        self._part = part
        self._digest = ""

    async def load(self) -> ScorerDescription:
        """What its replicas say of the scorer. Raises ScorerLoadError."""
        try:
            async with asyncio.timeout(_LOAD_TIMEOUT_S):
                description = await self._part.describe.remote()
        except Exception as error:
            raise ScorerLoadError(f"the deployment of scorer {self._name!r} does not answer: {error}") from error
        self._digest = digest_of([self._options], [description.version])
        return description

    async def run(self, group: Group) -> TimedResult:
        """Raises InvalidGroupError as the scorer does, and UnavailableError if another replica may do better."""
        try:
            scores = await self._part.score.remote(dataclasses.replace(group, scorers=()), current_caller.get())
        except BackPressureError as error:
            raise OverloadedError(f"scorer {self._name!r} is full: {error}") from error
        except RayTaskError as error:  # what the part raised
            raise error.cause from error
        except (RayError, grpc.RpcError, DeploymentUnavailableError) as error:  # what became of its replica
            raise UnavailableError(f"a replica of scorer {self._name!r} is gone: {type(error).__name__}") from error
        if scores.config_digest != self._digest:
            raise UnavailableError(
                f"scorer {self._name!r} is being replaced by another version; if it stays so, deploy the application "
                "again, since its code has changed"
            )
        (own,) = scores.scorers
        return TimedResult(Result(own.scores, own.metrics, own.extra), scores.queued_s, scores.compute_s)

    async def close(self) -> None:
        """The scorer is its deployment's."""


def executors(parts: dict[str, DeploymentHandle]) -> Any:
    """The executor of each scorer of a configuration, by its name."""

    def executor_of(scorer: Scorer) -> PartExecutor:
        if scorer.name not in parts:
            raise ConfigError(
                f"scorer {scorer.name!r} has no deployment: with split, change the application's `config` argument "
                "and not its user_config"
            )
        return PartExecutor(scorer, parts[scorer.name])

    return executor_of
