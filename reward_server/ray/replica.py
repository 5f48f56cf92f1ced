"""A replica: a reward server without a port of its own, behind Ray's proxy.

Owns the methods that Ray calls: those of the service, `reconfigure` with each new user_config, and the end. What a
call is and how a configuration is loaded is `serving`'s; when the replicas switch to it is `takeover`'s.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import AsyncIterator
from typing import Any

import grpc
from ray import serve
from ray.serve.grpc_util import RayServegRPCContext
from ray.serve.handle import DeploymentHandle

from reward_server.observability import logs
from reward_server.ray.calls import Answer, answer
from reward_server.ray.configuration import config_of, name_of
from reward_server.ray.metrics import RayMetrics
from reward_server.ray.siblings import Siblings
from reward_server.ray.split import executors
from reward_server.ray.takeover import State, Takeover
from reward_server.serving.scorer_set import ScorerSet
from reward_server.serving.server import RewardServer
from reward_server.serving.service import RewardService

log = logging.getLogger("reward_server")

_NO_COHORTS = (
    "completions that are sent one by one do not meet behind Ray Serve, which chooses a replica for each call: send "
    "whole groups, or serve with reward-server serve"
)


class Replica:
    """The replica of the deployment that takes the calls."""

    def __init__(self, parts: dict[str, DeploymentHandle] | None = None):
        """With `parts`, its scorers run in the deployments of these names."""
        logs.set_up("text", "info")
        elsewhere = None if parts is None else executors(parts)
        self._make = functools.partial(ScorerSet, elsewhere=elsewhere, max_groups=0)
        self._server: RewardServer | None = None
        self._service: RewardService | None = None
        self._takeover: Takeover | None = None
        self._metrics: asyncio.Task[None] | None = None

    async def reconfigure(self, user_config: Any, rank: Any) -> None:
        """Loads the first configuration, and returns when it serves; prepares a later one, and returns at once.

        Raises ConfigError or ScorerLoadError for the first one. A later one that cannot be used is logged, and the
        replica serves on.
        """
        leads = rank.rank == 0
        if self._takeover is None:
            self._takeover = await self._start(user_config)
            await self._takeover.join(leads)
        else:
            self._takeover.begin(user_config, leads)

    async def ScoreGroup(self, request: Any, grpc_context: RayServegRPCContext) -> Answer:
        """Scores a group."""
        return await self._answer("ScoreGroup", request, grpc_context)

    async def ScoreGroups(self, request: Any, grpc_context: RayServegRPCContext) -> AsyncIterator[Answer]:
        """Refuses, so that clients send each group alone: Ray's proxy deals calls out to replicas, and not groups."""
        grpc_context.set_code(grpc.StatusCode.UNIMPLEMENTED)
        grpc_context.set_details("behind Ray Serve, groups come one by one: use ScoreGroup")
        return
        yield  # Ray expects a generator

    async def ScoreCompletion(self, request: Any, grpc_context: RayServegRPCContext) -> Answer:
        """Scores a completion that is a group of its own; refuses one of several, which would never meet."""
        if request.of > 1:
            grpc_context.set_code(grpc.StatusCode.INVALID_ARGUMENT)
            grpc_context.set_details(_NO_COHORTS)
            return Answer(b"")
        return await self._answer("ScoreCompletion", request, grpc_context)

    async def GetServerInfo(self, request: Any, grpc_context: RayServegRPCContext) -> Answer:
        """Describes the server."""
        return await self._answer("GetServerInfo", request, grpc_context)

    async def agree(self, command: str, name: str) -> State:
        """Another replica's command about the configuration of this name: see `takeover`."""
        assert self._takeover is not None, "Ray calls only replicas that have started"
        return self._takeover.obey(command, name)

    async def __del__(self) -> None:
        """Ray calls it once no call is in flight, or after `graceful_shutdown_timeout_s`."""
        if self._metrics is not None:
            self._metrics.cancel()
        if self._takeover is not None:
            await self._takeover.close()
        if self._server is not None:
            await self._server.drain()
            await self._server.shutdown()

    async def _start(self, user_config: Any) -> Takeover:
        server = RewardServer(config_of(user_config), make_scorers=self._make)
        try:
            await server.load()
        except BaseException:
            await server.shutdown()
            raise
        self._server, self._service = server, server.open()
        self._metrics = asyncio.create_task(RayMetrics(server.metrics.registry()).keep_fresh())
        context = serve.get_replica_context()
        return Takeover(server, name_of(user_config), Siblings(context.app_name, context.deployment))

    async def _answer(self, method: str, request: Any, context: RayServegRPCContext) -> Answer:
        assert self._takeover is not None, "Ray calls only replicas that have started"
        assert self._service is not None
        await self._takeover.may_begin()
        return await answer(self._service, method, request, context)
