"""Keeps a server alive at one address: a child that dies is started again there, so that its callers' retries find it.

Owns the watcher, the pauses between restarts and the folder of the socket. How a server is started and ended is
`launch`'s; sending the groups again that were in flight is the client's.

    server = launch_supervised("reward.yaml")
    client = RewardClient(server.endpoint)
    server.stop()
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from reward_server import errors
from reward_server.launch.launch import ServerProcess, launch_server, private_folder

log = logging.getLogger("reward_server")

# One that dies again and again does so for a reason that the next start does not mend.
_MOST_RESTARTS = 5
_WINDOW_S = 60.0
_FIRST_PAUSE_S = 0.5


def launch_supervised(
    config: str | Path | Mapping[str, Any], *, timeout_s: float = 120.0, log_path: str | Path | None = None
) -> SupervisedServer:
    """Starts a server of this configuration on a unix socket, and again whenever it ends before `stop()`.

    It is started again at most five times a minute. A configuration file is read again at each start. Arguments and
    errors are those of `launch_server`.
    """
    folder = private_folder()
    try:
        return SupervisedServer(config, folder, timeout_s, log_path)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


class SupervisedServer:
    """A server that is started again if it dies. It ends with `stop()`, and with this process, however that ends."""

    def __init__(
        self, config: str | Path | Mapping[str, Any], folder: Path, timeout_s: float, log_path: str | Path | None
    ):
        self._config = config
        self._folder = folder
        self._timeout_s = timeout_s
        self._log_path = log_path
        self._owner_pid = os.getpid()
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._starting: subprocess.Popen[bytes] | None = None
        self._restarts_at: list[float] = []
        self._server = self._launch()
        atexit.register(self.stop)
        self._watcher = threading.Thread(target=self._watch, name="reward server watcher", daemon=True)
        self._watcher.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def endpoint(self) -> str:
        """Where a client finds it, now and after each restart."""
        return self._server.endpoint

    @property
    def config_digest(self) -> str:
        """Of the server that runs now."""
        return self._server.config_digest

    @property
    def pid(self) -> int:
        """Of the server that runs now."""
        return self._server.pid

    def poll(self) -> int | None:
        """The exit code of the last server; None while it runs."""
        return self._server.poll()

    @property
    def restarts(self) -> int:
        """How often it was started again."""
        return len(self._restarts_at)

    def stop(self, grace_s: float = 10.0) -> int:
        """Ends the watcher, then drains and ends the server, at once after the grace; returns the exit code.

        In a forked child of the process that launched it nothing happens: the server is not the child's.
        """
        if os.getpid() != self._owner_pid:
            return 0
        atexit.unregister(self.stop)
        with self._lock:
            self._stopping.set()  # from here on nothing is started
            if self._starting is not None:
                self._starting.kill()
        self._server.stop(grace_s)  # what the watcher waits for
        self._watcher.join()
        code = self._server.stop(grace_s)
        shutil.rmtree(self._folder, ignore_errors=True)
        return code

    # ----------------------------------------------------------------------------------------------------- the watcher

    def _watch(self) -> None:
        while not self._stopping.is_set():
            _wait_for_end(self._server.pid)
            if self._stopping.is_set():
                return
            code = self._server.stop()  # it has ended: this reaps it
            log.error("the reward server ended with exit code %d and is started again at %s", code, self.endpoint)
            self._start_again()

    def _start_again(self) -> None:
        while not self._stopping.wait(pause_s(self._restarts_at, time.monotonic())):
            self._restarts_at.append(time.monotonic())
            try:
                self._server = self._launch()
                return
            except (errors.RewardServerError, OSError) as error:
                if not self._stopping.is_set():
                    log.error("the reward server could not be started again: %s", error)

    def _launch(self) -> ServerProcess:
        try:
            server = launch_server(
                self._config,
                listen=f"unix:{self._folder}/socket",
                timeout_s=self._timeout_s,
                log_path=self._log_path,
                on_spawn=self._note_starting,
            )
        finally:
            with self._lock:
                self._starting = None
        atexit.unregister(server.stop)  # or the watcher would see it end before our own `stop` runs
        return server

    def _note_starting(self, process: subprocess.Popen[bytes]) -> None:
        with self._lock:
            self._starting = process
            if self._stopping.is_set():
                process.kill()


def pause_s(restarts_at: Sequence[float], now: float) -> float:
    """Seconds until the next restart, after restarts at these times: none first, then doubling, five a minute."""
    recent = [at for at in restarts_at if now - at < _WINDOW_S]
    if not recent:
        return 0.0
    if len(recent) >= _MOST_RESTARTS:
        return recent[-_MOST_RESTARTS] + _WINDOW_S - now
    return _FIRST_PAUSE_S * 2 ** (len(recent) - 1)


def _wait_for_end(pid: int) -> None:
    """Returns when the child has ended. It stays to be reaped by its owner, who may have done so already."""
    with contextlib.suppress(ChildProcessError):
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
