"""Groups that are sent together: how they are divided, and what becomes of each when a call or a server fails."""

from __future__ import annotations

import asyncio
import functools
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import CancelledError, Future, wait
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest

from reward_server.client import RewardClient
from reward_server.client.group_streams import parts
from reward_server.client.replicas import Replicas
from reward_server.config import config_from_mapping
from reward_server.errors import CallError, CredentialsError, DeadlineError, InvalidGroupError
from reward_server.serving.server import RewardServer
from reward_server.serving.service import SERVICE_NAME
from reward_server.types import GroupScores
from reward_server.v1 import reward_pb2 as pb
from tests.support.builders import make_group
from tests.support.observed import Page
from tests.support.peers import StreamingPeer, answers_to, listening, peer, scores_for
from tests.support.served import LENGTH, PAGE, misbehaving, served
from tests.support.servers import function

GROUPS = [make_group(["a" * n, "b"], group_id=f"g{n}") for n in range(1, 41)]
MIB = 1 << 20


def values(pending: list[Future[GroupScores]]) -> list[float | None]:
    """The first score of each group."""
    return [future.result(timeout=20).scorers[0].scores[0].value for future in pending]


def lone(request: pb.ScoreGroupRequest, _: Any) -> Any:
    """The answer of a peer to a group that comes alone: scores 0, 1, …"""
    return scores_for(request, len(request.completions))


def counted(server: RewardServer) -> dict[str, float]:
    """How many calls of each method a server has had."""
    assert server.metrics_url is not None
    seen = Page.at(server.metrics_url)
    methods = ("ScoreGroup", "ScoreGroups")
    return {method: seen.total("calls_created_total", method=method) for method in methods}


# ---------------------------------------------------------------------------------------------------- how they are sent


async def test_groups_sent_together_have_the_scores_that_they_have_alone_in_a_fraction_of_the_calls() -> None:
    async with served(misbehaving(), metrics=PAGE) as caller:
        with RewardClient(caller.server.endpoints[0]) as client:
            await asyncio.to_thread(client.connect, 10)
            together = await asyncio.to_thread(lambda: values(client.submit_all(GROUPS)))
            assert together == await asyncio.to_thread(lambda: values([client.submit(group) for group in GROUPS]))
        assert await asyncio.to_thread(counted, caller.server) == {"ScoreGroup": 80, "ScoreGroups": 2}


def test_a_group_alone_needs_no_stream_and_none_needs_no_call() -> None:
    servicer = StreamingPeer(lone, lambda *_: iter(()))
    with listening(servicer) as endpoint, RewardClient(endpoint) as client:
        assert values(client.submit_all(GROUPS[:1])) == [0.0]
        assert client.submit_all([]) == []
    assert (servicer.calls, servicer.stream_calls) == (1, 0)


@pytest.mark.parametrize(
    ("sizes", "replicas", "lengths"),
    [
        ([1] * 40, 1, [20, 20]),  # at most 32 in a call
        ([1] * 40, 3, [13, 13, 14]),
        ([1] * 100, 3, [16, 17, 17, 16, 17, 17]),  # each replica as many calls as the others
        ([1] * 3, 8, [1, 1, 1]),
        ([MIB // 2] * 16, 1, [4, 4, 4, 4]),  # at most 2 MiB in a call
        ([MIB // 2] * 16, 3, [2, 3, 3, 2, 3, 3]),
        ([2 * MIB, 4 * MIB, 1, *[1] * 9], 1, [1, 1, 1, 3, 3, 3]),  # but for a group that is longer
        ([], 2, []),
    ],
)
def test_groups_are_divided_evenly_over_replicas_and_no_call_is_too_long(
    sizes: list[int], replicas: int, lengths: list[int]
) -> None:
    divided = list(parts(dict(enumerate(sizes)), replicas, most=32))
    assert [len(part) for part in divided] == lengths
    assert [group for part in divided for group in part] == list(range(len(sizes)))


@pytest.mark.parametrize(
    ("target", "count"),
    [
        ("unix:/tmp/a.sock", 1),
        ("ipv4:127.0.0.1:1", 1),
        ("dns:///localhost:1", 1),
        ("ipv4:10.0.0.1:1,10.0.0.2:1", 2),
        ("ipv4:10.0.0.1:1", 4),  # perhaps a proxy before several
    ],
)
def test_calls_are_spread_over_the_replicas_that_an_endpoint_may_stand_for(target: str, count: int) -> None:
    assert Replicas(target, None).count() == count


def test_every_replica_gets_its_part(serve: Callable[..., Any]) -> None:
    configs = [function("even_length", weight=1.0), function("even_length", weight=2.0)]  # two digests, to tell them by
    servers = [serve(config, listen="127.0.0.1:0") for config in configs]
    with RewardClient([server.endpoint for server in servers], timeout_s=20) as client:
        deadline = time.monotonic() + 10
        while len({client.score(group).config_digest for group in GROUPS[:2]}) < 2:  # until both are connected
            assert time.monotonic() < deadline
        scored = Counter(future.result().config_digest for future in client.submit_all(GROUPS[:16]))
    assert list(scored.values()) == [8, 8]


# ---------------------------------------------------------------------------------------------------- old and new peers


@asynccontextmanager
async def old_server() -> AsyncIterator[tuple[str, Counter[str]]]:
    """A server of before ScoreGroups: it has the methods of then. Gives its endpoint, and counts its calls."""
    server, calls = RewardServer(config_from_mapping({"scorers": [LENGTH]})), Counter[str]()
    await server.load()
    service = server.open()

    async def call(name: str, request: bytes, context: Any) -> bytes:
        calls[name] += 1
        return await service.call(name, request, context)

    names = ("ScoreGroup", "ScoreCompletion", "GetServerInfo")
    handlers = {name: grpc.unary_unary_rpc_method_handler(functools.partial(call, name)) for name in names}
    listener = grpc.aio.server()
    listener.add_registered_method_handlers(SERVICE_NAME, handlers)
    port = listener.add_insecure_port("127.0.0.1:0")
    await listener.start()
    yield f"127.0.0.1:{port}", calls
    await listener.stop(None)
    await server.shutdown()


async def test_an_old_server_gets_each_group_alone_and_is_not_asked_again() -> None:
    async with old_server() as (endpoint, calls):
        with RewardClient(endpoint) as client:
            for _ in range(2):
                answers = await asyncio.to_thread(lambda: values(client.submit_all(GROUPS[:10])))
                assert answers == [1.0] * 3 + [0.0] * 7  # of at most three characters
            assert client.counts.retries == 0
            assert calls == {"ScoreGroup": 20}
            assert client._session().offer.most_groups(None) == 1


def test_a_server_that_tells_of_no_such_call_is_not_asked_for_it() -> None:
    servicer = StreamingPeer(lone, lambda *_: iter(()))  # its info is that of an old server
    with listening(servicer) as endpoint, RewardClient(endpoint) as client:
        client.connect(10)
        assert values(client.submit_all(GROUPS[:4])) == [0.0] * 4
    assert (servicer.calls, servicer.stream_calls) == (4, 0)


async def test_an_old_client_is_served_by_a_new_server() -> None:
    old = pb.ScoreGroupRequest(wire_version=1, run_id="r", group_id="g", prompt=pb.Content(text="p"))
    old.completions.add().content.text = "abc"
    async with served(LENGTH) as caller:
        answer = await caller.stub.ScoreGroup(old, timeout=10)
        info = await caller.stub.GetServerInfo(pb.GetServerInfoRequest(wire_version=1))
    assert [score.value for score in answer.scorers[0].scores] == [1.0]
    assert info.wire_version == 1, "a new call is no new version"
    assert info.limits.max_groups == 256


# ----------------------------------------------------------------------------------------------------------- what fails


def failing(index: int, code: grpc.StatusCode, pushback_ms: int | None = None) -> pb.ScoreGroupsResponse:
    failure = pb.GroupFailure(code=code.value[0], message="no", pushback_ms=pushback_ms)
    return pb.ScoreGroupsResponse(answers=[pb.GroupAnswer(index=index, failure=failure)])


def test_a_group_that_is_pushed_back_comes_again_alone_when_it_was_told_to() -> None:
    def streams(request: Any, _: Any) -> Iterator[Any]:
        yield failing(1, grpc.StatusCode.RESOURCE_EXHAUSTED, pushback_ms=300)
        yield answers_to(request, 0, 2)

    servicer = StreamingPeer(lone, streams)
    with listening(servicer) as endpoint, RewardClient(endpoint) as client:
        began = time.monotonic()
        pending = client.submit_all(GROUPS[:3])
        assert values([pending[0], pending[2]]) == [0.0, 0.0]
        assert not pending[1].done(), "the others do not wait for it"
        assert values(pending) == [0.0] * 3
        assert time.monotonic() - began >= 0.3
        assert client.counts.retries == 1
    assert (servicer.calls, servicer.stream_calls) == (1, 1)


def test_a_group_that_is_refused_costs_itself_and_is_not_sent_again() -> None:
    def streams(request: Any, _: Any) -> Iterator[Any]:
        yield failing(0, grpc.StatusCode.INVALID_ARGUMENT)
        yield answers_to(request, 1)

    servicer = StreamingPeer(lone, streams)
    with listening(servicer) as endpoint, RewardClient(endpoint) as client:
        bad, good = client.submit_all(GROUPS[:2])
        assert values([good]) == [0.0]
        with pytest.raises(InvalidGroupError, match=rf"{endpoint}: no"):
            bad.result(timeout=5)
    assert servicer.calls == 0


def test_a_group_that_cannot_be_sent_costs_itself(serve: Callable[..., Any]) -> None:
    bad = make_group(["a"], columns={"when": object()})
    with RewardClient(serve(function("even_length")).endpoint) as client:
        first, refused, last = client.submit_all([GROUPS[0], bad, GROUPS[1]])
        assert values([first, last]) == [0.0, 1.0]
        with pytest.raises(InvalidGroupError, match="column 'when'"):
            refused.result(timeout=5)


@pytest.mark.parametrize("end", ["OK", "UNAVAILABLE"])
def test_a_stream_that_ends_too_early_leaves_answers_and_sends_the_other_groups_again(end: str) -> None:
    def streams(request: Any, context: Any) -> Iterator[Any]:
        yield answers_to(request, 2, 0)
        if end != "OK":
            context.abort(grpc.StatusCode[end], "gone")

    alone: list[str] = []

    def score(request: Any, context: Any) -> Any:
        alone.append(request.group_id)
        return lone(request, context)

    servicer = StreamingPeer(score, streams)
    with listening(servicer) as endpoint, RewardClient(endpoint) as client:
        assert values(client.submit_all(GROUPS[:5])) == [0.0] * 5
        assert client.counts.retries == 3
    assert sorted(alone) == ["g2", "g4", "g5"], "with the names that they had, so that they are not scored twice"


def test_an_error_of_the_call_is_that_of_every_group() -> None:
    def streams(_: Any, context: Any) -> Iterator[Any]:
        context.abort(grpc.StatusCode.UNAUTHENTICATED, "who are you?")
        yield

    with listening(StreamingPeer(lone, streams)) as endpoint, RewardClient(endpoint) as client:
        for future in client.submit_all(GROUPS[:3]):
            with pytest.raises(CredentialsError, match="who are you"):
                future.result(timeout=5)


def test_answers_of_another_group_or_to_none_are_refused() -> None:
    def streams(request: Any, _: Any) -> Iterator[Any]:
        crossed = answers_to(request, 1, 0)
        crossed.answers[0].index, crossed.answers[1].index = 0, 1
        yield crossed
        yield answers_to(request, 0, 1, 2)  # the first two have their answers, such as they are
        yield pb.ScoreGroupsResponse(answers=[pb.GroupAnswer(index=9), pb.GroupAnswer(index=3)])

    with listening(StreamingPeer(lone, streams)) as endpoint, RewardClient(endpoint) as client:
        first, second, third, empty = client.submit_all(GROUPS[:4])
        for future, asked, got in ((first, "g1", "g2"), (second, "g2", "g1")):
            with pytest.raises(
                CallError, match=f"answered group '{asked}' of 2 completions with scores for group '{got}'"
            ):
                future.result(timeout=5)
        assert values([third]) == [0.0]
        with pytest.raises(CallError, match="neither scores nor a failure"):
            empty.result(timeout=5)


# ------------------------------------------------------------------------------------------------ deadlines and endings


def waits_for_its_end(ended: threading.Event) -> Callable[[Any, Any], Iterator[Any]]:
    """Streams that answer the first group, and say when their call has ended."""

    def streams(request: Any, context: Any) -> Iterator[Any]:
        context.add_callback(ended.set)
        yield answers_to(request, 0)
        ended.wait(10)

    return streams


def test_the_deadline_is_that_of_every_group_and_what_came_before_stands() -> None:
    with (
        listening(StreamingPeer(lone, waits_for_its_end(threading.Event()))) as endpoint,
        RewardClient(endpoint) as client,
    ):
        began = time.monotonic()
        first, second, third = client.submit_all(GROUPS[:3], timeout_s=0.5)
        wait([first, second, third], timeout=5)
        assert 0.4 < time.monotonic() - began < 2
        assert values([first]) == [0.0]
        for late in (second, third):
            with pytest.raises(DeadlineError, match=r"within 0\.5 s"):
                late.result(timeout=0)


def test_a_stream_ends_on_the_server_once_all_of_its_groups_are_given_up() -> None:
    ended = threading.Event()
    with listening(StreamingPeer(lone, waits_for_its_end(ended))) as endpoint, RewardClient(endpoint) as client:
        first, second, third = client.submit_all(GROUPS[:3])
        assert values([first]) == [0.0]
        assert second.cancel()
        assert not ended.wait(0.3), "another group is still waited for"
        assert third.cancel()
        assert ended.wait(5)
        with pytest.raises(CancelledError):
            second.result()


def test_closing_a_client_ends_its_streams() -> None:
    ended = threading.Event()
    with listening(StreamingPeer(lone, waits_for_its_end(ended))) as endpoint:
        client = RewardClient(endpoint)
        first, second = client.submit_all(GROUPS[:2])
        assert values([first]) == [0.0]
        client.close()
        with pytest.raises(CallError, match="cancelled"):
            second.result(timeout=5)
        assert ended.wait(5)


def test_a_hedge_of_a_group_goes_alone_and_the_first_answer_wins() -> None:
    ended = threading.Event()
    servicer = StreamingPeer(lone, waits_for_its_end(ended))
    with listening(servicer) as endpoint, RewardClient(endpoint, hedge_after_s=0.1) as client:
        assert values(client.submit_all(GROUPS[:2])) == [0.0, 0.0]
        assert client.counts.hedges == 1
        assert ended.wait(5), "nobody waits for the stream any more"
    assert servicer.stream_calls == 1


def test_an_old_server_in_the_middle_of_its_groups_keeps_their_deadline() -> None:
    with peer(lambda *_: time.sleep(2)) as (endpoint, _), RewardClient(endpoint) as client:
        pending = client.submit_all(GROUPS[:2], timeout_s=0.4)
        for future in pending:
            with pytest.raises(DeadlineError, match=r"within 0\.4 s"):
                future.result(timeout=1.5)
