"""One server process under a supervisor: it executes the commands that come over the line between the two.

Owns the child's side of that line; the parent's side is `server_handle`. A message is a number, a command and its
arguments. The answer carries the number, since a drain may come while a configuration is still being prepared.

    load config sample places    listen    prepare config    switch    discard    refresh_metrics    drain
    stop_at_once
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
from reward_server.serving.lifecycle import event_loop
from reward_server.serving.peers import Places
from reward_server.serving.server import Prepared, RewardServer
from reward_server.types import Group, ServerInfo

log = logging.getLogger("reward_server")


def main(line_fd: int, lifeline_fd: int, parent_pid: int, log_level: int, log_format: int) -> None:
    """Runs until the supervisor closes its end of the line."""
    os.set_inheritable(line_fd, False)  # a process that user code forks must not hold the line open
    os.set_inheritable(lifeline_fd, False)
    die_with_parent(parent_pid, lifeline_fd)
    # A service manager may signal every process of the service. Only the supervisor reacts, and tells this process.
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, lambda *_: None)
    logs.set_up(logs.FORMATS[log_format], logging.getLevelName(log_level))
    with event_loop() as runner:
        runner.run(_serve_commands(socket.socket(fileno=line_fd)))


async def _serve_commands(line: socket.socket) -> None:
    reader, writer = await asyncio.open_unix_connection(sock=line)
    commands = _Commands()
    tasks: set[asyncio.Task[None]] = set()
    try:
        while True:
            number, command, *arguments = await _receive(reader)
            task = asyncio.create_task(_answer(writer, number, commands, command, arguments))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
    except (asyncio.IncompleteReadError, ConnectionError):
        pass  # the supervisor has closed its end
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await commands.close()
        writer.close()


async def _receive(reader: asyncio.StreamReader) -> Any:
    (size,) = HEADER.unpack(await reader.readexactly(HEADER.size))
    body = await reader.readexactly(size)
    # In a thread, since unpickling imports a scorer class of the user's that the configuration names.
    return await in_thread(functools.partial(pickle.loads, body))


async def _answer(
    writer: asyncio.StreamWriter, number: int, commands: _Commands, command: str, arguments: list[Any]
) -> None:
    try:
        answer = await commands.execute(command, arguments)
    except RewardServerError as error:
        answer = {"error": str(error), "type": type(error).__name__}
    except Exception as error:
        log.exception("a command of the supervisor raised an unexpected error")
        answer = {"error": f"{type(error).__name__}: {error}", "type": ScorerLoadError.__name__}
    body = json.dumps({"number": number, **answer}).encode()
    writer.write(HEADER.pack(len(body)) + body)
    with contextlib.suppress(ConnectionError):  # the supervisor has ended, and so will this process
        await writer.drain()


class _Commands:
    """The commands of a supervisor: a server, and the configuration that is prepared to take over in it."""

    def __init__(self) -> None:
        self._loaded: RewardServer | None = None
        self._preparing: asyncio.Task[Prepared] | None = None
        self._has_drained = False

    async def execute(self, command: str, arguments: list[Any]) -> dict[str, Any]:
        """Executes a command and returns its answer."""
        return await getattr(self, f"_{command}")(*arguments)

    async def close(self) -> None:
        """Cuts the calls in flight, and frees what the scorers hold."""
        await self._discard()
        if self._loaded is not None:
            if self._loaded.endpoints and not self._has_drained:
                self._loaded.ask_to_stop(at_once=True)
                await self._loaded.drain()
            await self._loaded.shutdown()

    async def _load(self, config: ServerConfig, sample: Group | None, places: Places) -> dict[str, Any]:
        self._loaded = RewardServer(config, sample, places)
        await self._loaded.load()
        return _info_answer(self._loaded.info)

    async def _listen(self) -> dict[str, Any]:
        await self._server.listen()
        return {}

    async def _prepare(self, config: ServerConfig) -> dict[str, Any]:
        self._preparing = asyncio.create_task(self._server.prepare(config))
        return _info_answer((await self._preparing).scorers.info)

    async def _switch(self) -> dict[str, Any]:
        assert self._preparing is not None, "prepare comes first"
        self._server.switch(self._preparing.result())
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
        self._server.metrics.refresh()
        return {}

    async def _drain(self) -> dict[str, Any]:
        await self._discard()
        finished = await self._server.drain() if self._server.endpoints else True
        self._has_drained = True
        return {"finished": finished}

    async def _stop_at_once(self) -> dict[str, Any]:
        self._server.ask_to_stop(at_once=True)
        return {}

    @property
    def _server(self) -> RewardServer:
        assert self._loaded is not None, "load comes first"
        return self._loaded


def _info_answer(info: ServerInfo) -> dict[str, Any]:
    return {"info": wire.encode_info(info).SerializeToString().hex()}
