"""The clients, against real servers and against peers that answer wrongly."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from collections.abc import Callable
from concurrent import futures
from typing import Any

import grpc
import pytest

from reward_server.client import AsyncRewardClient, RewardClient
from reward_server.errors import (
    CallError,
    ConfigError,
    DeadlineError,
    GroupTooLargeError,
    InvalidGroupError,
    UnavailableError,
    WireVersionError,
)
from reward_server.v1 import reward_pb2 as pb
from reward_server.v1 import reward_pb2_grpc as pb_grpc
from tests.support.builders import make_group
from tests.support.peers import Peer, peer, scores_for
from tests.support.processes import run_forking
from tests.support.servers import function

Serve = Callable[..., Any]


# ------------------------------------------------------------------------------------------------------- real servers


def test_a_group_is_scored_and_a_second_call_uses_the_same_client(serve: Serve) -> None:
    with RewardClient(serve(function("vowels"), function("even_length")).endpoint) as client:
        info = client.connect(10)
        assert [scorer.name for scorer in info.scorers] == ["vowels", "even_length"]
        scores = client.score(make_group(["ab", "abc"]))
        assert [score.value for score in scores.scorers[0].scores] == pytest.approx([1 / 3, 1 / 4])
        assert [score.value for score in scores.scorers[1].scores] == [1.0, 0.0]
        assert scores.config_digest == info.config_digest
        assert client.score(make_group(["ab"])).scorers[1].scores[0].value == 1.0


async def test_the_async_client_does_the_same(serve: Serve) -> None:
    async with AsyncRewardClient(serve(function("even_length")).endpoint) as client:
        assert [scorer.name for scorer in (await client.info(10)).scorers] == ["even_length"]
        answers = await asyncio.gather(*[client.score(make_group(["ab", "abc"], group_id=str(n))) for n in range(20)])
        assert {tuple(score.value for score in answer.scorers[0].scores) for answer in answers} == {(1.0, 0.0)}


def test_many_threads_share_a_client(serve: Serve) -> None:
    client = RewardClient(serve(function("even_length")).endpoint)
    with futures.ThreadPoolExecutor(8) as pool:
        groups = [make_group(["a" * n], group_id=str(n)) for n in range(1, 65)]
        answers = list(pool.map(client.score, groups))
    assert [answer.scorers[0].scores[0].value for answer in answers] == [float(n % 2 == 0) for n in range(1, 65)]
    client.close()


FORKING = """
import os, sys
from reward_server.client import RewardClient
from tests.support.builders import make_group

client = RewardClient(sys.argv[1], timeout_s=20)
if sys.argv[2] == "used":
    client.score(make_group(["ab"]))
if not (child := os.fork()):
    os._exit(int(10 * client.score(make_group(["ab"])).scorers[0].scores[0].value))
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 10
assert client.score(make_group(["abc"])).scorers[0].scores[0].value == 0.0
client.close()
"""


@pytest.mark.parametrize("before", ["used", "not used"])
def test_a_client_made_before_a_fork_works_in_the_child_and_in_the_parent(serve: Serve, before: str) -> None:
    run_forking(FORKING, serve(function("even_length")).endpoint, before)


def test_a_dead_replica_costs_no_call(serve: Serve) -> None:
    servers = [serve(function("even_length"), listen=f"127.0.0.1:{free_port()}") for _ in range(2)]
    client = RewardClient([server.endpoint for server in servers], timeout_s=20)
    assert client.score(make_group(["ab"])).scorers[0].scores[0].value == 1.0
    os.kill(servers[0].pid, 9)
    for number in range(20):
        assert client.score(make_group(["ab"], group_id=str(number))).scorers[0].scores[0].value == 1.0
    client.close()


def test_calls_are_balanced_over_replicas(serve: Serve) -> None:
    configs = [function("even_length", weight=1.0), function("even_length", weight=2.0)]  # two digests, to tell them by
    servers = [serve(config, listen=f"127.0.0.1:{free_port()}") for config in configs]
    with RewardClient([server.endpoint for server in servers], timeout_s=20) as client:
        deadline = time.monotonic() + 10
        digests: set[str] = set()
        while len(digests) < 2 and time.monotonic() < deadline:
            digests.add(client.score(make_group(["ab"])).config_digest)
    assert len(digests) == 2


def test_a_server_that_starts_late_is_waited_for(serve: Serve) -> None:
    port = free_port()
    starting = threading.Timer(1.0, lambda: serve(function("vowels"), listen=f"127.0.0.1:{port}"))
    starting.start()
    try:
        with RewardClient(f"127.0.0.1:{port}") as client:
            assert client.connect(30).scorers[0].name == "vowels"
    finally:
        starting.join()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# ------------------------------------------------------------------------------------------------------------- errors


def test_an_unknown_scorer_is_the_callers_fault(serve: Serve) -> None:
    with RewardClient(serve(function("vowels")).endpoint) as client, pytest.raises(InvalidGroupError, match="'vowel'"):
        client.score(make_group(scorers=("vowel",)))


def test_a_missing_column_is_named(serve: Serve) -> None:
    with RewardClient(serve(function("target_share")).endpoint) as client:
        with pytest.raises(InvalidGroupError, match="target"):
            client.score(make_group())


def test_a_group_beyond_the_limit_is_refused_before_and_after_the_limit_is_known(serve: Serve) -> None:
    server = serve(function("vowels"), limits={"max_group_bytes": 1000})
    with RewardClient(server.endpoint) as client:
        with pytest.raises(GroupTooLargeError, match=r"1000.*max_group_bytes"):
            client.score(make_group(["x" * 2000]))  # refused by the server
        client.connect(10)
        with pytest.raises(GroupTooLargeError, match=r"takes 1000.*max_group_bytes"):
            client.score(make_group(["x" * 2000]))  # refused before it is sent


def test_nobody_at_the_endpoint_fails_at_once_with_its_name() -> None:
    endpoint = f"127.0.0.1:{free_port()}"
    with RewardClient(endpoint) as client, pytest.raises(UnavailableError, match=endpoint):
        client.info(20)


def test_a_peer_that_never_answers_ends_at_the_deadline() -> None:
    with peer(lambda *_: time.sleep(2)) as (endpoint, _), RewardClient(endpoint) as client:
        began = time.monotonic()
        with pytest.raises(DeadlineError, match=r"within 0\.3 s"):
            client.score(make_group(), timeout_s=0.3)
        assert time.monotonic() - began < 1.5


def test_another_wire_version_is_named_with_both() -> None:
    with peer(wire_version=2) as (endpoint, _), RewardClient(endpoint) as client:
        with pytest.raises(WireVersionError, match=r"wire version 2 \(software 9\.9\), this client 1"):
            client.connect(10)


def test_a_server_of_something_else_is_no_reward_service() -> None:
    server = grpc.server(futures.ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with RewardClient(f"127.0.0.1:{port}") as client, pytest.raises(WireVersionError, match="no reward service"):
        client.connect(10)
    server.stop(None).wait(5)


@pytest.mark.parametrize(
    "answer",
    [
        lambda request, _: scores_for(pb.ScoreGroupRequest(group_id="another"), 2),
        lambda request, _: scores_for(request, 1),
    ],
)
def test_scores_of_another_group_or_number_are_refused(answer: Any) -> None:
    with peer(answer) as (endpoint, _), RewardClient(endpoint) as client:
        with pytest.raises(CallError, match=r"answered group 'g' of 2 completions with scores for group"):
            client.score(make_group())


def test_a_full_server_is_asked_again_and_a_bad_group_is_not() -> None:
    def full_once(request: Any, context: Any) -> Any:
        if servicer.calls == 1:
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")
        return scores_for(request, 2)

    with peer(full_once) as (endpoint, servicer), RewardClient(endpoint) as client:
        assert client.score(make_group()).scorers[0].scores[1].value == 1.0
        assert servicer.calls == 2

    def refuse(_: Any, context: Any) -> Any:
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, "bad")

    with peer(refuse) as (endpoint, servicer), RewardClient(endpoint) as client:
        with pytest.raises(InvalidGroupError, match="bad"):
            client.score(make_group())
        assert servicer.calls == 1


def test_metadata_goes_with_every_call_beside_the_clients_own() -> None:
    seen: list[dict[str, Any]] = []

    def note(request: Any, context: Any) -> Any:
        seen.append(dict(context.invocation_metadata()))
        return scores_for(request, 2)

    metadata = {"application": "rewards", "x-team": "one two"}
    with peer(note) as (endpoint, _), RewardClient(endpoint, token="t", metadata=metadata) as client:
        client.score(make_group())
    assert seen[0].items() >= {**metadata, "authorization": "Bearer t"}.items()
    assert "reward-caller" in seen[0]


@pytest.mark.parametrize(
    ("metadata", "named"),
    [({"Application": "a"}, "'Application'"), ({"authorization": "a"}, "authorization"), ({"a": "\n"}, "printable")],
)
def test_metadata_that_cannot_travel_or_is_the_clients_own_is_refused(metadata: dict[str, str], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        RewardClient("localhost:1", metadata=metadata)


def test_a_proxy_without_such_an_application_is_named_with_the_way_to_choose_one() -> None:
    def unknown(_: Any, context: Any) -> Any:
        context.abort(grpc.StatusCode.NOT_FOUND, "Application 'x' not found.")

    with peer(unknown) as (endpoint, _), RewardClient(endpoint) as client:
        with pytest.raises(CallError, match=r"Application 'x' not found.*metadata=\{\"application\": NAME\}"):
            client.score(make_group())


def test_a_large_group_is_retried_too() -> None:
    def full_once(request: Any, context: Any) -> Any:
        if servicer.calls == 1:
            context.abort(grpc.StatusCode.UNAVAILABLE, "going")
        return scores_for(request, 1)

    large = make_group(["x" * (2 << 20)])  # gRPC's default retry buffer is 256 KiB
    server = grpc.server(futures.ThreadPoolExecutor(4), options=[("grpc.max_receive_message_length", -1)])
    port = server.add_insecure_port("127.0.0.1:0")
    servicer = Peer(full_once)
    pb_grpc.add_RewardServiceServicer_to_server(servicer, server)
    server.start()
    with RewardClient(f"127.0.0.1:{port}") as client:
        assert client.score(large).scorers[0].scores[0].value == 0.0
    assert servicer.calls == 2
    server.stop(None).wait(5)


def test_cancelling_the_future_reaches_the_server() -> None:
    cancelled = threading.Event()

    def wait(_: Any, context: Any) -> Any:
        context.add_callback(cancelled.set)
        cancelled.wait(10)

    with peer(wait) as (endpoint, servicer), RewardClient(endpoint) as client:
        future = client.submit(make_group())
        deadline = time.monotonic() + 5
        while not servicer.calls and time.monotonic() < deadline:
            time.sleep(0.01)
        assert future.cancel()
        assert cancelled.wait(5)


def test_closing_a_client_ends_what_is_in_flight() -> None:
    release = threading.Event()
    with peer(lambda *_: release.wait(10)) as (endpoint, _):
        client = RewardClient(endpoint)
        future = client.submit(make_group())
        client.close()
        with pytest.raises(CallError, match="cancelled: Channel closed"):
            future.result(timeout=5)
        release.set()
