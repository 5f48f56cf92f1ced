"""Peers that are no servers of ours: they answer as a test says, so that it sees what the client makes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from typing import Any

import grpc

from reward_server import wire
from reward_server.types import GroupScores, Limits, Score, ScorerScores, ServerInfo, Status
from reward_server.v1 import reward_pb2 as pb
from reward_server.v1 import reward_pb2_grpc as pb_grpc


class Peer(pb_grpc.RewardServiceServicer):
    """A peer that is no server of ours: answers as a test says, to see what the client makes of it."""

    def __init__(self, answer: Callable[[pb.ScoreGroupRequest, grpc.ServicerContext], Any], wire_version: int = 1):
        self.answer = answer
        self.wire_version = wire_version
        self.calls = 0

    def ScoreGroup(self, request: Any, context: Any) -> Any:
        self.calls += 1
        return self.answer(request, context)

    def GetServerInfo(self, request: Any, context: Any) -> Any:
        return wire.encode_info(ServerInfo(self.wire_version, "9.9", "d", (), Limits(1000, 10)))


class StreamingPeer(Peer):
    """A peer that has ScoreGroups. `streams` answers its calls, with messages or with what the context is told."""

    def __init__(self, answer: Any, streams: Callable[[pb.ScoreGroupsRequest, grpc.ServicerContext], Iterator[Any]]):
        super().__init__(answer)
        self.streams = streams
        self.stream_calls = 0

    def ScoreGroups(self, request: Any, context: Any) -> Any:
        self.stream_calls += 1
        yield from self.streams(request, context)


@contextmanager
def peer(answer: Any = None, *handlers: Any, wire_version: int = 1) -> Iterator[tuple[str, Peer]]:
    """A peer that listens, and its endpoint. `handlers` are gRPC's generic ones, of other services."""
    with listening(servicer := Peer(answer, wire_version), *handlers) as endpoint:
        yield endpoint, servicer


@contextmanager
def listening(servicer: Peer, *handlers: Any) -> Iterator[str]:
    """The endpoint of a peer that listens."""
    server = grpc.server(futures.ThreadPoolExecutor(4))
    port = server.add_insecure_port("127.0.0.1:0")
    pb_grpc.add_RewardServiceServicer_to_server(servicer, server)
    server.add_generic_rpc_handlers(handlers)
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait(5)


def scores_for(request: Any, count: int) -> Any:
    """A response with so many scores, which are 0, 1, 2, …"""
    scorer = ScorerScores("s", "1", 1.0, tuple(Score(Status.OK, float(index)) for index in range(count)))
    return wire.encode_scores(GroupScores(request.group_id, (scorer,)))


def answers_to(request: pb.ScoreGroupsRequest, *indices: int) -> pb.ScoreGroupsResponse:
    """The answers to these groups of a request in one message, with scores 0, 1, 2, …"""
    groups = [request.calls[index].group for index in indices]
    scores = [scores_for(group, len(group.completions)) for group in groups]
    return pb.ScoreGroupsResponse(
        answers=[pb.GroupAnswer(index=index, scores=of) for index, of in zip(indices, scores, strict=True)]
    )
