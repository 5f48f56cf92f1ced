"""A child process that runs a function of this package and talks to its parent over a socket pair.

Owns its start, the frames on the line between the two, and its end: it ends with its parent, and what it started ends
with it. Knows nothing of the messages. Requests are pickled, since they come from the process that started the child.
Answers are JSON, so that nothing is unpickled that user code could have written.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pickle
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Mapping
from typing import Any, Self

from reward_server.processes.lifetime import ended

HEADER = struct.Struct("!Q")
"""The header of each frame: its length in bytes."""

# The child gets the parent's sys.path, so that it can import what its parent can.
_BOOT = (
    "import importlib, json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "importlib.import_module(sys.argv[2]).main(*map(int, sys.argv[3:]))"
)
_CLOSE_GRACE_S = 2.0


class ChildEndedError(ConnectionError):
    """The child process has closed its end of the line, since it ended or otherwise."""


class ChildProcess:
    """One process, in a session of its own: Ctrl-C in a terminal does not reach it, and its children end with it."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        lifeline_fd: int,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ):
        self._process = process
        self._lifeline_fd = lifeline_fd
        self._reader = reader
        self._writer = writer
        self._ended = asyncio.create_task(self._watch())

    @classmethod
    async def start(cls, module: str, *numbers: int, env: Mapping[str, str] | None = None) -> Self:
        """Starts a process that runs `main(line_fd, lifeline_fd, parent_pid, *numbers)` of a module.

        `env` is added to its environment.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            reader, writer = await asyncio.open_unix_connection(sock=ours)
            their_lifeline, our_lifeline = os.pipe()
            try:
                process = _spawn(module, theirs.fileno(), their_lifeline, numbers, env)
            except BaseException:
                writer.close()
                os.close(our_lifeline)
                raise
            finally:
                os.close(their_lifeline)
        return cls(process, our_lifeline, reader, writer)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int:
        """The exit code, once the process has ended; negative for a signal, as in `subprocess`."""
        return self._process.returncode

    @property
    def is_alive(self) -> bool:
        return not self._ended.done()

    async def send(self, message: Any) -> None:
        """Sends a message. Raises ChildEndedError."""
        body = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
        try:
            self._writer.write(HEADER.pack(len(body)) + body)
            await self._writer.drain()
        except ConnectionError as error:
            raise ChildEndedError(f"process {self.pid} ended") from error

    async def receive(self) -> dict[str, Any]:
        """The next answer. Raises ChildEndedError."""
        try:
            (size,) = HEADER.unpack(await self._reader.readexactly(HEADER.size))
            return json.loads(await self._reader.readexactly(size))
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise ChildEndedError(f"process {self.pid} ended") from error

    def kill(self) -> None:
        """Kills the process and the processes that it started."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)

    async def ended(self) -> None:
        """Returns when the process has ended and is reaped."""
        await asyncio.shield(self._ended)

    async def close(self, grace_s: float = _CLOSE_GRACE_S) -> None:
        """Lets the process end by itself within the grace, and then kills it."""
        self._writer.close()
        await asyncio.wait({self._ended}, timeout=grace_s)
        self.kill()
        await self.ended()

    async def _watch(self) -> None:
        await ended(self.pid)
        self.kill()  # kills what it started; its process ID is not free before it is reaped
        self._process.wait()
        os.close(self._lifeline_fd)
        self._writer.transport.abort()


def _spawn(
    module: str, line_fd: int, lifeline_fd: int, numbers: tuple[int, ...], env: Mapping[str, str] | None
) -> subprocess.Popen[bytes]:
    arguments = [json.dumps(sys.path), module, *map(str, (line_fd, lifeline_fd, os.getpid(), *numbers))]
    return subprocess.Popen(
        [sys.executable, "-P", "-u", "-c", _BOOT, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=2,  # a program may read the server's own standard output
        pass_fds=(line_fd, lifeline_fd),
        env={**os.environ, **(env or {})},
        start_new_session=True,
    )
