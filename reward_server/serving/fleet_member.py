"""One server process of a fleet: it does what its supervisor says over the line between them, and ends with that line.

Owns the child's side of what the two say to each other; the parent's is `fleet`'s. A message is a number, a verb and
what it needs; its answer carries the number, since a drain may come while a configuration is still being prepared.

    load config sample    listen    prepare config    switch    discard    refresh_metrics    drain    end_at_once
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import logging
import os
import pickle
import signal
import socket
from typing import Any

from reward_server import wire
from reward_server.config import ServerConfig
from reward_server.errors import RewardServerError, ScorerLoadError
from reward_server.execution.threads import in_thread
from reward_server.observability import logs
from reward_server.processes.child import HEADER
from reward_server.processes.lifetime import die_with_parent
from reward_server.serving.server import Prepared, RewardServer, event_loop
from reward_server.types import Group, ServerInfo

log = logging.getLogger("reward_server")


def main(line_fd: int, lifeline_fd: int, parent_pid: int, log_level: int, log_format: int) -> None:
    """Runs until the supervisor closes its end."""
    os.set_inheritable(line_fd, False)  # a process that user code forks must not hold the line open
    os.set_inheritable(lifeline_fd, False)
    die_with_parent(parent_pid, lifeline_fd)
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # a service manager signals all; the supervisor acts
        signal.signal(name, lambda *_: None)
    logs.set_up(logs.FORMATS[log_format], logging.getLevelName(log_level))
    with event_loop() as runner:
        runner.run(_live(socket.socket(fileno=line_fd)))


async def _live(line: socket.socket) -> None:
    reader, writer = await asyncio.open_unix_connection(sock=line)
    member = _Member()
    tasks: set[asyncio.Task[None]] = set()
    try:
        while True:
            (size,) = HEADER.unpack(await reader.readexactly(HEADER.size))
            body = await reader.readexactly(size)
            # In a thread: a class of the user's that a configuration names is imported by this.
            number, verb, *arguments = await in_thread(functools.partial(pickle.loads, body))
            task = asyncio.create_task(_answer(writer, number, member.do(verb, arguments)))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
    except (asyncio.IncompleteReadError, ConnectionError):
        pass  # the supervisor has closed its end
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await member.end()
        writer.close()


async def _answer(writer: asyncio.StreamWriter, number: int, doing: Any) -> None:
    try:
        answer = await doing
    except RewardServerError as error:
        answer = {"error": str(error), "type": type(error).__name__}
    except Exception as error:
        log.exception("a server process failed for a reason that is its own")
        answer = {"error": f"{type(error).__name__}: {error}", "type": ScorerLoadError.__name__}
    body = json.dumps({"number": number, **answer}).encode()
    writer.write(HEADER.pack(len(body)) + body)
    with contextlib.suppress(ConnectionError):  # the supervisor has ended, and so does this process
        await writer.drain()


class _Member:
    """A server and what has been prepared to take over in it."""

    def __init__(self) -> None:
        self._server: RewardServer | None = None
        self._preparing: asyncio.Task[Prepared] | None = None
        self._has_drained = False

    async def do(self, verb: str, arguments: list[Any]) -> dict[str, Any]:
        return await getattr(self, f"_{verb}")(*arguments)

    async def end(self) -> None:
        """Cuts what is in flight, and frees what the scorers hold."""
        await self._discard()
        if self._server is not None:
            if self._server.endpoints and not self._has_drained:
                self._server.ask_to_stop(at_once=True)
                await self._server.drain()
            await self._server.shutdown()

    async def _load(self, config: ServerConfig, sample: Group | None) -> dict[str, Any]:
        self._server = RewardServer(config, sample, shares_ports=True)
        await self._server.load()
        return _told(self._server.info)

    async def _listen(self) -> dict[str, Any]:
        await self._loaded.listen()
        return {}

    async def _prepare(self, config: ServerConfig) -> dict[str, Any]:
        self._preparing = asyncio.create_task(self._loaded.prepare(config))
        return _told((await self._preparing).scorers.info)

    async def _switch(self) -> dict[str, Any]:
        assert self._preparing is not None, "prepare comes first"
        self._loaded.switch(self._preparing.result())
        self._preparing = None
        return {}

    async def _discard(self) -> dict[str, Any]:
        preparing, self._preparing = self._preparing, None
        if preparing is not None:
            preparing.cancel()
            await asyncio.wait({preparing})
            if not preparing.cancelled() and preparing.exception() is None:
                await preparing.result().scorers.close()
        return {}

    async def _refresh_metrics(self) -> dict[str, Any]:
        self._loaded.metrics.refresh()
        return {}

    async def _drain(self) -> dict[str, Any]:
        await self._discard()
        finished = await self._loaded.drain() if self._loaded.endpoints else True
        self._has_drained = True
        return {"finished": finished}

    async def _end_at_once(self) -> dict[str, Any]:
        self._loaded.ask_to_stop(at_once=True)
        return {}

    @property
    def _loaded(self) -> RewardServer:
        assert self._server is not None, "load comes first"
        return self._server


def _told(info: ServerInfo) -> dict[str, Any]:
    return {"info": wire.encode_info(info).SerializeToString().hex()}
