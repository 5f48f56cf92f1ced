"""A server with more to do than it takes: callers are told when to return, and every group is scored once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from reward_server import wire
from reward_server.client import RewardClient
from reward_server.client.retries import pushback_of
from reward_server.errors import GroupTooLargeError, OverloadedError
from reward_server.launch import ServerProcess
from reward_server.v1 import reward_pb2_grpc as pb_grpc
from tests.support.builders import make_group
from tests.support.processes import wait_until
from tests.support.replicas import Load, lengths
from tests.support.servers import slow_length

Server = Callable[..., ServerProcess]

# Four groups of two: two that are scored, two that wait.
TINY_QUEUE = {"max_queued_completions": 8}


@pytest.mark.slow
def test_64_groups_at_a_server_that_takes_4_are_all_scored_once(server: Server, tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    full = server(slow_length(0.05, seen=str(seen)), limits=TINY_QUEUE)
    with RewardClient(full.endpoint) as client:
        load = Load(client, timeout_s=60).submit(64).finish()
        assert client.counts.retries >= 60, "the queue was never full"
    assert load.errors() == {}
    assert load.wrong(lengths) == []
    assert sorted(map(int, seen.read_text().split())) == list(range(64))


@pytest.mark.slow
def test_who_is_pushed_back_is_told_when_to_return_and_who_is_too_large_is_not(server: Server) -> None:
    full = server(slow_length(1.0), limits={**TINY_QUEUE, "max_completions": 6})
    with grpc.insecure_channel(full.endpoint) as channel:
        stub = pb_grpc.RewardServiceStub(channel)
        groups = [wire.encode_group(make_group(group_id=f"{number}")) for number in range(12)]
        calls = [stub.ScoreGroup.future(group, timeout=30) for group in groups]
        refused = [call for call in calls if call.code() is not grpc.StatusCode.OK]
        assert [call.code() for call in refused] == [grpc.StatusCode.RESOURCE_EXHAUSTED] * 8
        assert all(0.1 <= (pushback_of(call) or 0) <= 5 for call in refused)
        too_large = stub.ScoreGroup.future(wire.encode_group(make_group(["x"] * 7)), timeout=30)
        assert too_large.code() is grpc.StatusCode.OUT_OF_RANGE
        assert pushback_of(too_large) is None
    with RewardClient(full.endpoint) as client, pytest.raises(GroupTooLargeError):
        client.score(make_group(["x"] * 7))


@pytest.mark.slow
def test_a_server_that_stays_full_is_named_at_the_deadline(server: Server, tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    full = server(slow_length(3.0, seen=str(seen)), limits={"max_queued_completions": 2})
    with RewardClient(full.endpoint) as client:
        first = client.submit(make_group(group_id="first"), timeout_s=20)
        assert wait_until(seen.exists, 10)
        with pytest.raises(OverloadedError, match=r"limits.max_queued_completions.*\(attempt \d+\)"):
            client.score(make_group(group_id="second"), timeout_s=1.0)
        assert first.result().scorers[0].scores[0].value == 1.0
