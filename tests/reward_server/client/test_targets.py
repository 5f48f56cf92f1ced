"""Where a client connects to: targets, and the proxy that the environment names, with a real proxy and real servers."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from reward_server.client import AsyncRewardClient, RewardClient
from reward_server.client.targets import proxy_of, target_of
from reward_server.errors import ConfigError, DeadlineError, UnavailableError
from tests.support.builders import make_group
from tests.support.servers import function

Serve = Callable[..., Any]
PROXY = {"http_proxy": "http://user:secret@proxy.example:3128"}


class RefusingProxy:
    """An HTTP proxy that refuses to connect, and writes down where it was asked to connect to."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._socket.getsockname()[1]}"
        self.asked: list[str] = []
        threading.Thread(target=self._answer, daemon=True).start()

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _answer(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:  # closed
                return
            with connection:
                self.asked.append(connection.recv(4096).decode().split()[1])
                connection.sendall(b"HTTP/1.1 403 Forbidden\r\n\r\n")


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[RefusingProxy]:
    proxy = RefusingProxy()
    for name in ("grpc_proxy", "https_proxy", "no_grpc_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", f"http://user:secret@{proxy.address}")
    yield proxy
    proxy.close()


# ------------------------------------------------------------------------------------------------------------- targets


@pytest.mark.parametrize(
    ("endpoint", "target"),
    [
        ("localhost:50051", "dns:///localhost:50051"),
        ("[::1]:50051", "dns:///[::1]:50051"),
        ("unix:/tmp/x.sock", "unix:/tmp/x.sock"),
        (["rewards.example:1"], "dns:///rewards.example:1"),
        (["127.0.0.1:1", "127.0.0.2:2"], "ipv4:127.0.0.1:1,127.0.0.2:2"),
    ],
)
def test_an_endpoint_becomes_a_target(endpoint: Any, target: str) -> None:
    assert target_of(endpoint) == target


@pytest.mark.parametrize("endpoint", ["localhost", "http://localhost:1", "localhost:port", "localhost:99999", ":1", []])
def test_what_is_no_endpoint_is_named(endpoint: Any) -> None:
    with pytest.raises(ConfigError, match="endpoint"):
        RewardClient(endpoint)


# ------------------------------------------------------------------------------------------------------------- proxies


@pytest.mark.parametrize("listen", ["127.0.0.1:0", None], ids=["loopback", "unix socket"])
def test_a_server_on_this_machine_is_reached_without_the_proxy(
    proxy: RefusingProxy, serve: Serve, listen: str | None
) -> None:
    endpoint = serve(function("vowels"), listen=listen).endpoint
    with RewardClient(endpoint.replace("127.0.0.1", "localhost")) as client:
        assert len(client.score(make_group(["a"]), timeout_s=20).scorers) == 1

    async def score() -> int:
        async with AsyncRewardClient(endpoint) as client:
            return len((await client.score(make_group(["a"]), timeout_s=20)).scorers)

    assert asyncio.run(score()) == 1
    assert proxy.asked == []


def test_replicas_on_this_machine_are_reached_without_the_proxy(proxy: RefusingProxy, serve: Serve) -> None:
    endpoints = [serve(function("vowels"), listen="127.0.0.1:0").endpoint for _ in range(2)]
    with RewardClient(endpoints) as client:
        assert len(client.score(make_group(["a"]), timeout_s=20).scorers) == 1
    assert proxy.asked == []


def test_errors_of_connecting_name_the_proxy_and_not_its_password(proxy: RefusingProxy) -> None:
    with RewardClient("rewards.example:50051") as client:
        with pytest.raises(UnavailableError) as unavailable:
            client.info(5)
        with pytest.raises(DeadlineError) as late:
            client.score(make_group(["a"]), timeout_s=1)
    assert proxy.asked[0] == "rewards.example:50051"
    for error in (unavailable, late):
        assert f"through the proxy of http_proxy={proxy.address}: to connect directly" in str(error.value)
        assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("target", "environment", "proxy"),
    [
        ("dns:///rewards.example:1", PROXY, "http_proxy=proxy.example:3128"),
        ("rewards.example:1", PROXY, "http_proxy=proxy.example:3128"),
        ("ipv4:10.0.0.1:1", PROXY, "http_proxy=proxy.example:3128"),
        ("dns:///rewards.example:1", PROXY | {"grpc_proxy": "http://other:1"}, "grpc_proxy=other:1"),
        ("dns:///rewards.example:1", PROXY | {"grpc_proxy": ""}, None),
        ("dns:///rewards.example:1", {"HTTP_PROXY": "http://proxy.example:3128"}, None),
        ("dns:///rewards.example:1", PROXY | {"no_proxy": "other, .example"}, None),
        ("dns:///rewards.example:1", PROXY | {"no_proxy": ".example", "no_grpc_proxy": "other"}, PROXY),
        ("ipv4:10.0.0.1:1", PROXY | {"no_proxy": "10.0.0.0/8"}, None),
        ("dns:///localhost:1", PROXY, None),
        ("dns:///[::1]:1", PROXY, None),
        ("dns:///127.1.2.3:1", PROXY, None),
        ("unix:/tmp/x.sock", PROXY, None),
        ("ipv4:10.0.0.1:1,10.0.0.2:1", PROXY, None),
    ],
)
def test_the_proxy_is_the_one_that_grpc_takes(target: str, environment: dict[str, str], proxy: Any) -> None:
    expected = "http_proxy=proxy.example:3128" if proxy is PROXY else proxy
    assert proxy_of(target, environment) == expected
