"""Engines that tests ask: HTTP on loopback that answers as a function says, and writes down what was asked."""

from __future__ import annotations

import functools
import itertools
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route


@dataclass(frozen=True)
class Asked:
    """One request as it came."""

    path: str
    body: Any
    headers: Mapping[str, str]
    began: float
    client: tuple[str, int]


@dataclass
class FakeEngine:
    """Calls `answer(asked)` in a thread for each request; what is no Response is sent as JSON."""

    answer: Callable[[Asked], Any]
    url: str = ""
    asked: list[Asked] = field(default_factory=list)
    ended: list[float] = field(default_factory=list)
    hung_up: list[bool] = field(default_factory=list)
    """Whether the caller was gone when the answer was there, for each request in the order of their ends."""

    async def handle(self, request: Request) -> Response:
        assert request.client is not None
        path = f"/{request.path_params['path']}"
        asked = Asked(path, await request.json(), dict(request.headers), time.monotonic(), tuple(request.client))
        self.asked.append(asked)
        answer = await run_in_threadpool(self.answer, asked)
        self.ended.append(time.monotonic())
        self.hung_up.append(await request.is_disconnected())
        return answer if isinstance(answer, Response) else JSONResponse(answer)


@contextmanager
def running(answer: Callable[[Asked], Any]) -> Iterator[FakeEngine]:
    """An engine at `engine.url`, until the block ends; all of them share one server."""
    base_url, engines = _shared()
    engine = FakeEngine(answer)
    number = str(next(_NUMBERS))
    engine.url = f"{base_url}/{number}"
    engines[number] = engine
    try:
        yield engine
    finally:
        del engines[number]


@contextmanager
def serving(engine: FakeEngine, port: int, **tls: str) -> Iterator[None]:
    """The engine on a server of its own, which is down before and after; uvicorn's ssl_certfile and ssl_keyfile."""
    server, thread, _ = _serve(engine.handle, "/{path:path}", port, **tls)
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(10)


_NUMBERS = itertools.count()


@functools.cache
def _shared() -> tuple[str, dict[str, FakeEngine]]:
    engines: dict[str, FakeEngine] = {}

    async def handle(request: Request) -> Response:
        return await engines[request.path_params["engine"]].handle(request)

    _, _, port = _serve(handle, "/{engine}/{path:path}")
    return f"http://127.0.0.1:{port}", engines


def _serve(handle: Any, path: str, port: int = 0, **tls: str) -> tuple[uvicorn.Server, threading.Thread, int]:
    listener = socket.create_server(("127.0.0.1", port))
    app = Starlette(routes=[Route(path, handle, methods=["POST"])])
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off", timeout_graceful_shutdown=1, **tls))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    return server, thread, listener.getsockname()[1]


def free_port() -> int:
    """A port on which nobody listens now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]
