"""A server in the test's own event loop, and a raw stub that calls it without the client's retries."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from reward_server import wire
from reward_server.config import config_from_mapping
from reward_server.serving.server import RewardServer
from reward_server.types import Group, GroupScores
from reward_server.v1 import reward_pb2 as pb
from reward_server.v1 import reward_pb2_grpc as pb_grpc
from tests.support.observed import Page

FILE = Path(__file__).parent / "misbehaving.py"
LENGTH = {"type": "length", "name": "short", "max": 3}
PAGE = {"listen": "127.0.0.1:0"}


def misbehaving(name: str = "obeys", **options: Any) -> dict[str, Any]:
    """A function scorer of tests/support/misbehaving.py, for a server's configuration."""
    return {"type": "function", "name": name, "function": f"{FILE}:{name}", **options}


def of_class(name: str, **options: Any) -> dict[str, Any]:
    """A scorer class of tests/support/misbehaving.py."""
    return {"type": f"{FILE}:{name}", "name": name.lower(), **options}


class Caller:
    """A raw stub: the transport's own answers, without the client's retries."""

    def __init__(self, server: RewardServer, channel: grpc.aio.Channel):
        self.server = server
        self.channel = channel
        self.stub = pb_grpc.RewardServiceStub(channel)

    async def send(self, request: pb.ScoreGroupRequest, timeout_s: float = 30) -> GroupScores:
        return wire.decode_scores(await self.stub.ScoreGroup(request, timeout=timeout_s))

    async def score(self, group: Group, timeout_s: float = 30) -> GroupScores:
        return await self.send(wire.encode_group(group), timeout_s)

    async def refusal(self, group: Group) -> tuple[grpc.StatusCode, str]:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.score(group)
        return caught.value.code(), caught.value.details() or ""

    async def raw(self, data: bytes, method: str = "ScoreGroup") -> tuple[grpc.StatusCode, str]:
        call = self.channel.unary_unary(f"/reward_server.v1.RewardService/{method}")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(data, timeout=10)
        return caught.value.code(), caught.value.details() or ""


@asynccontextmanager
async def served(*scorers: dict[str, Any], **config: Any) -> AsyncIterator[Caller]:
    """A server of these scorers in this event loop, and a raw stub that is connected to it."""
    mapping = {"scorers": list(scorers), "workers": 2, "listen": "127.0.0.1:0", **config}
    server = RewardServer(config_from_mapping(mapping))
    await server.startup()
    try:
        async with grpc.aio.insecure_channel(server.endpoints[0], options=[("grpc.enable_retries", 0)]) as channel:
            yield Caller(server, channel)
    finally:
        await server.shutdown()


def statuses(scores: GroupScores, index: int = 0) -> list[str]:
    return [score.status.name for score in scores.scorers[index].scores]


def values(scores: GroupScores, index: int = 0) -> list[float | None]:
    return [score.value for score in scores.scorers[index].scores]


def messages(scores: GroupScores, index: int = 0) -> list[str]:
    return [score.message for score in scores.scorers[index].scores]


async def page(caller: Caller) -> Page:
    assert caller.server.metrics_url is not None
    return await asyncio.to_thread(Page.at, caller.server.metrics_url)


async def page_where(caller: Caller, holds: Callable[[Page], bool], timeout_s: float = 20) -> Page:
    """The first page of which it holds."""
    async with asyncio.timeout(timeout_s):
        while not holds(seen := await page(caller)):  # noqa: ASYNC110 - Prometheus asks again, too
            await asyncio.sleep(0.02)
    return seen
