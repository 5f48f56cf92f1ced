"""Twenty thousand callers that give up: the server forgets each of them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import grpc.aio
import pytest

from reward_server import wire
from reward_server.v1 import reward_pb2_grpc as pb_grpc
from tests.support.builders import make_group
from tests.support.observed import Server, served_by_cli
from tests.support.served import misbehaving

CALLS, AT_ONCE, WARM_UP = 20_000, 500, 4_000

pytestmark = pytest.mark.slow


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    config = tmp_path / "c.yaml"
    scorers = [misbehaving("slow_async", timeout_s=600)]
    settings = {"scorers": scorers, "workers": 1, "drain_grace_s": 1, "metrics": {"listen": "127.0.0.1:0"}}
    config.write_text(json.dumps({**settings, "records": {"path": str(tmp_path / "records")}}))
    with served_by_cli("--config", str(config), "--listen", f"unix:{tmp_path}/s") as server:
        yield server


async def give_up(stub: pb_grpc.RewardServiceStub, server: Server, calls: int, first: int) -> None:
    """Sends calls, waits until the server has them all, and cancels them."""
    for start in range(first, first + calls, AT_ONCE):
        groups = [make_group(["sleep 600"], group_id=str(start + index)) for index in range(AT_ONCE)]
        tasks = [asyncio.ensure_future(stub.ScoreGroup(wire.encode_group(group), timeout=60)) for group in groups]
        await in_flight(server, AT_ONCE)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    await in_flight(server, 0)


async def in_flight(server: Server, count: int) -> None:
    """Returns when so many calls are in flight."""
    async with asyncio.timeout(30):
        while (await asyncio.to_thread(server.page))("calls_in_flight") != count:  # noqa: ASYNC110 - a page is asked for
            await asyncio.sleep(0.01)


async def test_20_000_cancelled_calls_leave_nothing_behind(server: Server) -> None:
    async with grpc.aio.insecure_channel(server.endpoint) as channel:
        stub = pb_grpc.RewardServiceStub(channel)
        await give_up(stub, server, WARM_UP, first=0)
        before_mib = server.memory_mib()
        await give_up(stub, server, CALLS - WARM_UP, first=WARM_UP)
        grown_mib = server.memory_mib() - before_mib
    page = server.page()
    print(f"{grown_mib:.2f} MiB more after {CALLS - WARM_UP} calls, from {before_mib:.1f} MiB")
    assert page("calls_created_total", method="ScoreGroup") == CALLS
    assert page("calls_finished_total", method="ScoreGroup", code="CANCELLED") == CALLS
    assert page("queued_groups") == page("scorer_groups", scorer="slow_async") == 0
    # A call takes several KiB. What a server frees it keeps for a while, so that its peak counts: 2 to 9 MiB.
    assert grown_mib < 12, f"{grown_mib:.1f} MiB: {grown_mib * 1024 / (CALLS - WARM_UP):.2f} KiB a call"
