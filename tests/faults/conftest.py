"""What every fault test has: replicas that can be killed, a proxy that can cut, the claims that all of them make."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from reward_server.launch import ServerProcess, launch_server
from tests.support.processes import descendants, wait_until
from tests.support.proxy import Proxy
from tests.support.replicas import Replica, Replicas


@pytest.fixture(autouse=True)
def no_process_is_left() -> Iterator[None]:
    """After a test no process lives that it started, nor one that those started."""
    before = descendants(os.getpid())
    yield
    assert wait_until(lambda: not descendants(os.getpid()) - before, 10), descendants(os.getpid()) - before


@pytest.fixture
def replicas(no_process_is_left: None) -> Iterator[Replicas]:
    """Starts `count` replicas of the given scorers, each on a port of its own."""
    started: list[Replica] = []

    def start(count: int, *scorers: dict[str, Any], **config: Any) -> list[Replica]:
        for _ in range(count):
            started.append(Replica({"scorers": list(scorers), "workers": 2, **config}, "127.0.0.1:0"))
        return started[-count:]

    yield start
    for replica in started:
        replica.stop()


@pytest.fixture
def server(no_process_is_left: None) -> Iterator[Callable[..., ServerProcess]]:
    """Starts a server of the given scorers on a unix socket."""
    started: list[ServerProcess] = []

    def start(*scorers: dict[str, Any], **config: Any) -> ServerProcess:
        started.append(launch_server({"scorers": list(scorers), "workers": 2, **config}, timeout_s=60))
        return started[-1]

    yield start
    for each in started:
        each.stop()


@pytest.fixture
def proxy() -> Iterator[Callable[[str], Proxy]]:
    """Puts a proxy before an endpoint."""
    proxies: list[Proxy] = []

    def before(endpoint: str) -> Proxy:
        proxies.append(Proxy(endpoint))
        return proxies[-1]

    yield before
    for each in proxies:
        each.close()
