"""Keeps a server alive at one address: a server that dies is started again there, where its callers' retries find it.

Owns the watcher and the folder of the socket. `launch` starts and ends the server; the client sends the groups again
that were in flight.

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
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reward_server import errors
from reward_server.launch.launch import ServerProcess, launch_server, private_folder
from reward_server.launch.owned import OwnedServer
from reward_server.processes.restarts import pause_s

log = logging.getLogger("reward_server")


def launch_supervised(
    config: str | Path | Mapping[str, Any], *, timeout_s: float = 120.0, log_path: str | Path | None = None
) -> SupervisedServer:
    """Starts a server of this configuration on a unix socket, and starts it again whenever it ends before `stop()`.

    It is started again at most five times a minute, and each start reads a configuration file anew. Arguments and
    errors are those of `launch_server`.
    """
    folder = private_folder()
    try:
        return SupervisedServer(config, folder, timeout_s, log_path)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


class SupervisedServer(OwnedServer):
    """A server that is started again if it dies. It ends with `stop()`, and with this process, however that ends."""

    def __init__(
        self, config: str | Path | Mapping[str, Any], folder: Path, timeout_s: float, log_path: str | Path | None
    ):
        self._config = config
        self._folder = folder
        self._timeout_s = timeout_s
        self._log_path = log_path
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._starting: subprocess.Popen[bytes] | None = None
        self._restarts_at: list[float] = []
        self._server = self._launch()
        super().__init__()
        self._watcher = threading.Thread(target=self._watch, name="reward server watcher", daemon=True)
        self._watcher.start()

    @property
    def endpoint(self) -> str:
        """The address for a client. It stays the same after each restart."""
        return self._server.endpoint

    @property
    def config_digest(self) -> str:
        """The digest of the configuration that the current server serves."""
        return self._server.config_digest

    @property
    def pid(self) -> int:
        """The process ID of the current server."""
        return self._server.pid

    def poll(self) -> int | None:
        """The exit code of the last server; None while it runs."""
        return self._server.poll()

    @property
    def restarts(self) -> int:
        """How often the server was started again."""
        return len(self._restarts_at)

    def _stop(self, grace_s: float) -> int:
        with self._lock:
            self._stopping.set()  # nothing is started from here on
            if self._starting is not None:
                self._starting.kill()
        self._server.stop(grace_s)  # the watcher waits for its end
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
        atexit.unregister(server.stop)  # or the watcher would see it end before `self.stop` runs
        return server

    def _note_starting(self, process: subprocess.Popen[bytes]) -> None:
        with self._lock:
            self._starting = process
            if self._stopping.is_set():
                process.kill()


def _wait_for_end(pid: int) -> None:
    """Returns when the child has ended. It does not reap the child: its owner does, and may already have done so."""
    with contextlib.suppress(ChildProcessError):
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
