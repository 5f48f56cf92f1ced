"""Connections that are cut or go silent, and peers that answer wrongly, too much, or not now."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from reward_server.client import RewardClient
from reward_server.errors import CallError, DeadlineError, GroupTooLargeError, InvalidGroupError, OverloadedError
from tests.support.builders import make_group
from tests.support.peers import peer, scores_for
from tests.support.proxy import Proxy
from tests.support.replicas import SLACK_S, Load, Replicas, lengths, values
from tests.support.servers import broken, made

Before = Callable[[str], Proxy]


@pytest.mark.parametrize("after_bytes", [1, 40])
def test_a_connection_cut_half_way_through_a_response_costs_no_group(
    replicas: Replicas, proxy: Before, after_bytes: int
) -> None:
    (replica,) = replicas(1, made("slow_length", seconds=0.2))
    link = proxy(replica.endpoint)
    with RewardClient(link.endpoint) as client:
        client.score(make_group(["a"]))
        load = Load(client, timeout_s=15).submit(4)
        link.cut_after(after_bytes)  # what comes next from the server are answers
        load.finish()
        assert link.cuts == 1
        assert not load.errors()
        assert not load.wrong(lengths)
        assert client.counts.retries > 0


def test_a_silent_connection_to_a_sole_server_ends_at_the_deadline(replicas: Replicas, proxy: Before) -> None:
    (replica,) = replicas(1, made("slow_length", seconds=0.2))
    link = proxy(replica.endpoint)
    with RewardClient(link.endpoint) as client:
        client.score(make_group(["a"]))
        link.go_silent()
        load = Load(client, timeout_s=1.0).submit(3).finish()
        assert all(isinstance(error, DeadlineError) for error in load.errors().values())
        assert len(load.errors()) == 3
        link.speak()
        assert not Load(client, timeout_s=15).submit(3).finish().wrong(lengths)


def test_scores_for_the_wrong_group_are_refused_and_not_asked_for_again() -> None:
    def swapped(request: Any, _: Any) -> Any:
        request.group_id = "another"
        return scores_for(request, len(request.completions))

    with peer(swapped) as (endpoint, servicer), RewardClient(endpoint) as client:
        load = Load(client, timeout_s=5).submit(3).finish()
        assert len(load.errors()) == 3
        assert all(isinstance(error, CallError) for error in load.errors().values())
        assert servicer.calls == 3


def test_a_full_servers_push_back_is_waited_out() -> None:
    at: list[float] = []

    def full_twice(request: Any, context: Any) -> Any:
        at.append(time.monotonic())
        if len(at) <= 2:
            context.set_trailing_metadata((("grpc-retry-pushback-ms", "400"),))
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")
        return scores_for(request, 2)

    with peer(full_twice) as (endpoint, _), RewardClient(endpoint, timeout_s=10) as client:
        assert values(client.score(make_group())) == [0.0, 1.0]
        assert client.counts.retries == 2
    waits = [later - earlier for earlier, later in itertools.pairwise(at)]
    assert all(0.4 <= wait_s < 0.4 * 1.25 + SLACK_S for wait_s in waits)


def test_a_push_back_beyond_the_deadline_is_an_answer_now() -> None:
    def full(_: Any, context: Any) -> Any:
        context.set_trailing_metadata((("grpc-retry-pushback-ms", "60000"),))
        context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full for a minute")

    with peer(full) as (endpoint, servicer), RewardClient(endpoint) as client:
        began = time.monotonic()
        with pytest.raises(OverloadedError, match="full for a minute"):
            client.score(make_group(), timeout_s=5)
        assert time.monotonic() - began < SLACK_S
        assert servicer.calls == 1


def test_a_negative_push_back_means_no_retry() -> None:
    def never(_: Any, context: Any) -> Any:
        context.set_trailing_metadata((("grpc-retry-pushback-ms", "-1"),))
        context.abort(grpc.StatusCode.UNAVAILABLE, "do not come back")

    with peer(never) as (endpoint, servicer), RewardClient(endpoint) as client:
        with pytest.raises(ConnectionError, match="do not come back"):
            client.score(make_group(), timeout_s=5)
        assert servicer.calls == 1


def test_a_server_that_is_full_to_the_end_is_tried_more_than_five_times_and_never_after_the_deadline() -> None:
    def full(_: Any, context: Any) -> Any:
        context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")

    with peer(full) as (endpoint, servicer), RewardClient(endpoint) as client:
        load = Load(client, timeout_s=2.5).submit(8).finish()
        assert len(load.errors()) == 8
        assert all(isinstance(error, OverloadedError | DeadlineError) for error in load.errors().values())
        assert servicer.calls > 8 * 3
        assert client.counts.retries == servicer.calls - 8
        calls = servicer.calls
        time.sleep(0.3)
        assert servicer.calls == calls


@pytest.mark.parametrize(
    "code",
    ["INVALID_ARGUMENT", "OUT_OF_RANGE", "FAILED_PRECONDITION", "UNAUTHENTICATED", "PERMISSION_DENIED", "INTERNAL"],
)
def test_what_another_attempt_cannot_mend_is_not_tried_again(code: str) -> None:
    def refuse(_: Any, context: Any) -> Any:
        context.abort(getattr(grpc.StatusCode, code), "no")

    with peer(refuse) as (endpoint, servicer), RewardClient(endpoint) as client:
        load = Load(client, timeout_s=5).submit(2).finish()
        assert len(load.errors()) == 2
        assert servicer.calls == 2
        assert client.counts.retries == 0


def test_a_group_over_the_limit_is_named_at_once_and_its_neighbours_are_scored(replicas: Replicas) -> None:
    (replica,) = replicas(1, broken("length"), limits={"max_group_bytes": 2000})
    with RewardClient(replica.endpoint, timeout_s=10) as client:
        large = client.submit(make_group(["x" * 4000], group_id="large"))
        small = client.submit(make_group(["x" * 40], group_id="small"))
        assert values(small.result()) == [40.0]
        with pytest.raises(GroupTooLargeError, match=r"4\d\d\d bytes.*2000.*max_group_bytes"):
            large.result()
        assert client.counts.retries == 0


def test_an_answer_that_is_no_message_is_an_error_and_no_score() -> None:
    server = grpc.server(ThreadPoolExecutor(1))
    handler = grpc.unary_unary_rpc_method_handler(lambda request, context: b"\xff\xff\xff")
    service = grpc.method_handlers_generic_handler("reward_server.v1.RewardService", {"ScoreGroup": handler})
    server.add_generic_rpc_handlers((service,))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with RewardClient(f"127.0.0.1:{port}") as client:
        with pytest.raises(CallError, match=r"INTERNAL|deserializing|response"):
            client.score(make_group(), timeout_s=5)
    server.stop(None).wait(5)


def test_a_bad_group_among_good_ones_fails_alone(replicas: Replicas) -> None:
    (replica,) = replicas(1, broken("length"))
    with RewardClient(replica.endpoint, timeout_s=10) as client:
        bad = client.submit(make_group(["a"], group_id="bad", scorers=("nobody",)))
        good = [client.submit(make_group(["a" * n], group_id=str(n))) for n in range(4)]
        assert [values(future.result()) for future in good] == [[0.0], [1.0], [2.0], [3.0]]
        assert isinstance(bad.exception(), InvalidGroupError)
