"""Connecting behind a proxy that learns of the server only after the client has asked."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import grpc
import pytest

from reward_server.client import RewardClient, clients
from reward_server.errors import CallError, DeadlineError
from reward_server.v1 import reward_pb2_grpc as pb_grpc
from tests.support.peers import Peer, peer, scores_for


@pytest.fixture
def starting() -> Iterator[Callable[[Callable[[int, Any], None]], str]]:
    """Makes a peer that answers what it is asked about itself after `first(number of the ask, context)` returned."""
    servers = []

    def start(first: Callable[[int, Any], None]) -> str:
        class Starting(Peer):
            asked = 0

            def GetServerInfo(self, request: Any, context: Any) -> Any:
                self.asked += 1
                first(self.asked, context)
                return super().GetServerInfo(request, context)

        server = grpc.server(futures.ThreadPoolExecutor(4))
        port = server.add_insecure_port("127.0.0.1:0")
        pb_grpc.add_RewardServiceServicer_to_server(Starting(lambda request, _: scores_for(request, 1)), server)
        server.start()
        servers.append(server)
        return f"127.0.0.1:{port}"

    yield start
    for server in servers:
        server.stop(None).wait(5)


def test_connecting_waits_for_an_application_that_a_proxy_does_not_have_yet(starting: Any) -> None:
    def unknown(asked: int, context: Any) -> None:
        if asked < 3:
            context.abort(grpc.StatusCode.NOT_FOUND, "Application 'x' not found.")

    with RewardClient(starting(unknown)) as client:
        with pytest.raises(CallError, match="no such application"):
            client.connect(0.2)
        assert client.connect(10).server_version == "9.9"


def test_connecting_asks_again_where_a_proxy_holds_what_it_was_asked(
    starting: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    over = threading.Event()
    monkeypatch.setattr(clients, "_ONE_ASK_S", 0.3)
    with RewardClient(starting(lambda asked, _: over.wait(20) if asked < 3 else None)) as client:
        with pytest.raises(DeadlineError):
            client.connect(0.2)
        assert client.connect(10).server_version == "9.9"
    over.set()


def test_connecting_gives_up_a_connection_on_which_no_server_is_well(monkeypatch: pytest.MonkeyPatch) -> None:
    peers: list[str] = []

    def watch(_: Any, context: Any) -> Any:
        if context.peer() not in peers:
            peers.append(context.peer())
        # As Ray's proxy does that was not told of the application; and as one that was.
        known = context.peer() != peers[0]
        context.abort(grpc.StatusCode.UNIMPLEMENTED if known else grpc.StatusCode.NOT_FOUND, "")

    handler = grpc.method_handlers_generic_handler(
        "grpc.health.v1.Health", {"Watch": grpc.unary_stream_rpc_method_handler(watch)}
    )
    monkeypatch.setattr(clients, "_ONE_CONNECTION_S", 0.5)
    with peer(lambda request, _: scores_for(request, 1), handler) as (endpoint, _), RewardClient(endpoint) as client:
        assert client.connect(10).server_version == "9.9"
    assert len(peers) == 2
