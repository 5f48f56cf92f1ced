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


@contextmanager
def peer(answer: Any = None, *handlers: Any, wire_version: int = 1) -> Iterator[tuple[str, Peer]]:
    """A peer that listens, and its endpoint. `handlers` are gRPC's generic ones, of other services."""
    server = grpc.server(futures.ThreadPoolExecutor(4))
    port = server.add_insecure_port("127.0.0.1:0")
    servicer = Peer(answer, wire_version)
    pb_grpc.add_RewardServiceServicer_to_server(servicer, server)
    server.add_generic_rpc_handlers(handlers)
    server.start()
    yield f"127.0.0.1:{port}", servicer
    server.stop(None).wait(5)


def scores_for(request: Any, count: int) -> Any:
    """A response with so many scores, which are 0, 1, 2, …"""
    scorer = ScorerScores("s", "1", 1.0, tuple(Score(Status.OK, float(index)) for index in range(count)))
    return wire.encode_scores(GroupScores(request.group_id, (scorer,)))
