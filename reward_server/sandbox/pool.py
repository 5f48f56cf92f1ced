"""The server's side of the runners: it starts them when needed, asks them, and kills and replaces them.

Owns the runners' processes and folders, and how many runs go on at once. Knows nothing of how a run is confined.

    runners = Runners(plan, size=4)
    async with runners.lease() as runner:               waits for its turn
        outcome = await runner.ask(Run(program, stdin))     raises SandboxError, UnusableTestError
    await runners.close()

A runner that failed, or whose caller was cancelled, is ended together with all that it started.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Coroutine
from typing import Any

from reward_server.processes.lifetime import ended
from reward_server.sandbox.backends import BACKENDS
from reward_server.sandbox.folders import remove
from reward_server.sandbox.runs import Outcome, Plan, Run, SandboxError, outcome_of

log = logging.getLogger("reward_server")

# The runner gets the server's sys.path, so that it imports the same modules, and nothing else of its environment.
_BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from reward_server.sandbox.runner import main; "
    "main(*sys.argv[2:])"
)
_GRACE_S = 30.0  # beyond the run's own limits: processes may start and end slowly on a busy machine
_CLOSE_S = 2.0
_LONGEST_ANSWER = 1 << 30  # the output limit keeps answers far below this
_UNSHARE = ("--pid", "--fork", "--kill-child", "--mount-proc")


class Runners:
    """At most `size` runs at once, first come first served."""

    def __init__(self, plan: Plan, size: int):
        self._plan = plan
        self._turns = asyncio.Semaphore(size)
        self._idle: list[_Runner] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._prefix: tuple[str, ...] | None = None
        self._closing = False

    @contextlib.asynccontextmanager
    async def lease(self) -> AsyncIterator[_Runner]:
        """A runner for one caller alone. It is kept for the next caller unless it failed or a run was cut short."""
        async with self._turns:
            runner = self._idle.pop() if self._idle else await self._start()
            try:
                yield runner
            finally:
                if runner.is_sound and not self._closing:
                    self._idle.append(runner)
                else:
                    self._own(runner.close())  # not awaited: the caller may be a cancelled one

    async def close(self) -> None:
        """Ends the runners and the programs that they run."""
        self._closing = True
        idle, self._idle = self._idle, []
        await asyncio.gather(*self._tasks, *(runner.close() for runner in idle), return_exceptions=True)

    async def _start(self) -> _Runner:
        if self._prefix is None:
            wanted = BACKENDS[self._plan.backend].needs_namespaces
            self._prefix = await asyncio.to_thread(namespaces) if wanted else ()
        return await _Runner.start(self._plan, self._prefix)

    def _own(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class _Runner:
    """One runner's process, the line to it, and its folder, which is removed with it."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        line: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        folder: str,
        limit_s: float,
    ):
        self._process = process
        self._reader, self._writer = line
        self._folder = folder
        self._limit_s = limit_s
        self.is_sound = True

    @classmethod
    async def start(cls, plan: Plan, prefix: tuple[str, ...]) -> _Runner:
        folder = tempfile.mkdtemp(prefix="reward-sandbox-")
        ours, theirs = socket.socketpair()
        with theirs:
            line = await asyncio.open_unix_connection(sock=ours, limit=_LONGEST_ANSWER)
            try:
                process = _spawn(plan, prefix, folder, theirs.fileno())
            except OSError as error:
                line[1].close()
                shutil.rmtree(folder, ignore_errors=True)
                raise SandboxError(f"a runner of programs cannot be started: {error}") from error
        return cls(process, line, folder, plan.limits.wall_s + plan.limits.most_starved_s + _GRACE_S)

    @property
    def pid(self) -> int:
        return self._process.pid

    async def ask(self, run: Run) -> Outcome:
        """How one run ended. Raises SandboxError if the sandbox failed, UnusableTestError if the test cannot run."""
        self.is_sound = False
        try:
            async with asyncio.timeout(self._limit_s):
                self._writer.write(json.dumps(dataclasses.asdict(run)).encode() + b"\n")
                await self._writer.drain()
                line = await self._reader.readline()
        except (TimeoutError, ConnectionError, ValueError) as error:
            raise SandboxError(f"the runner of the program gave no answer ({type(error).__name__})") from error
        if not line.endswith(b"\n"):
            raise SandboxError("the runner of the program ended")
        self.is_sound = True
        return outcome_of(json.loads(line))

    async def close(self) -> None:
        """Closes the line, at which the runner ends its programs and itself; kills it if it does not end in time."""
        self._writer.close()
        try:
            async with asyncio.timeout(_CLOSE_S):
                await ended(self.pid)
        except TimeoutError:
            self._process.kill()
            await ended(self.pid)
        self._process.wait()
        await asyncio.to_thread(remove, self._folder)


def _spawn(plan: Plan, prefix: tuple[str, ...], folder: str, line_fd: int) -> subprocess.Popen[bytes]:
    """Uses subprocess, not the event loop: uvloop forks, and gRPC's fork handlers abort a busy server."""
    return subprocess.Popen(
        [*prefix, sys.executable, "-P", "-c", _BOOT, json.dumps(sys.path), plan.dumps(), folder],
        stdin=line_fd,
        stdout=line_fd,
        env={"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8", "HOME": folder},
        cwd=folder,
        start_new_session=True,
    )


@functools.cache
def namespaces() -> tuple[str, ...]:
    """The command that starts a runner in a process namespace of its own, in which nothing outlives it.

    Empty if this system refuses one. Where the system allows it, the runner gets a user namespace, too, so that its
    root is nobody outside.
    """
    for who in (("--user", "--map-current-user"), ()):
        prefix = ("unshare", *who, *_UNSHARE)
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            if subprocess.run([*prefix, "true"], capture_output=True, timeout=10, check=False).returncode == 0:
                return prefix
    log.warning(
        "this system allows no process namespace: if a runner is killed (-9), what its programs started lives on"
    )
    return ()
