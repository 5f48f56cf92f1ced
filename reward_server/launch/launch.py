"""Starts a reward server as a child process, waits until it takes calls, and never leaves it behind.

Owns the child process, its socket and the folder that holds the socket. It reads no configuration: the child reports
what is wrong with one, and the error is raised here.

    with launch_server("reward.yaml") as server:
        client = RewardClient(server.endpoint)
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Self

from reward_server import errors
from reward_server.launch.owned import OwnedServer

_AT_ONCE_S = 5.0
# The path of a socket must fit into 104 bytes on macOS and 108 on Linux, the closing zero included.
_LONGEST_SOCKET_PATH = 103


class ServerProcess(OwnedServer):
    """A running server. It ends with `stop()`, with the `with` block, and with this process, however that ends."""

    def __init__(self, process: subprocess.Popen[bytes], folder: Path, endpoints: list[str], config_digest: str):
        super().__init__()
        self._process = process
        self._folder = folder
        self.endpoints = endpoints
        self.config_digest = config_digest

    @property
    def endpoint(self) -> str:
        return self.endpoints[0]

    @property
    def pid(self) -> int:
        return self._process.pid

    def poll(self) -> int | None:
        return self._process.poll()

    def _stop(self, grace_s: float) -> int:
        code = _end(self._process, grace_s)
        shutil.rmtree(self._folder, ignore_errors=True)
        return code


def launch_server(
    config: str | Path | Mapping[str, Any],
    *,
    listen: str | None = None,
    timeout_s: float = 120.0,
    log_path: str | Path | None = None,
    on_spawn: Callable[[subprocess.Popen[bytes]], None] | None = None,
) -> ServerProcess:
    """Starts a server of this configuration and returns once it takes calls.

    `config` is a file, or a mapping of what a file would hold (relative paths in it are then looked up in the working
    folder). `listen` is `host:port` (port 0 takes a free one) or `unix:path`; without it, the server listens on a unix
    socket that only this user can open. The child's output goes to `log_path`, or to this process's standard error.
    `on_spawn` receives the process before it is ready, for callers who may have to end it meanwhile.

    Raises ConfigError or ScorerLoadError with the child's message, UnavailableError if it is not ready in time.
    """
    folder = private_folder()
    process: subprocess.Popen[bytes] | None = None
    try:
        with _Ready() as ready, _config_file(config) as stdin, _log_file(log_path) as output:
            source = "-" if isinstance(config, Mapping) else str(config)
            process = _spawn(source, listen or f"unix:{folder}/socket", ready.child_fd, stdin, output, log_path is None)
            if on_spawn is not None:
                on_spawn(process)
            answer = ready.wait(process, timeout_s, "its configuration" if source == "-" else source, log_path)
        return ServerProcess(process, folder, answer["endpoints"], answer["config_digest"])
    except BaseException:
        if process is not None:
            _end(process, grace_s=0)
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _spawn(
    source: str, listen: str, ready_fd: int, stdin: IO[bytes] | int, output: IO[bytes] | int, is_quiet: bool
) -> subprocess.Popen[bytes]:
    options = ["--listen", listen, "--ready-fd", str(ready_fd), "--exit-with-parent", str(os.getpid())]
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "reward_server.cli", "serve", "--config", source, *options]
        + (["--log-level", "warning"] if is_quiet else []),
        stdin=stdin,
        stdout=output,
        stderr=output,
        pass_fds=(ready_fd,),
        # The child can import the reward code that this process can import.
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},
        # Ctrl-C in the terminal must not reach the server: the trainer still needs the scores of its current step.
        start_new_session=True,
    )


class _Ready:
    """A pipe on which the child writes one line: the addresses that it listens on, or an error."""

    def __enter__(self) -> Self:
        self._fd, self.child_fd = os.pipe()
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)
        self._close_child_fd()

    def _close_child_fd(self) -> None:
        """Closes it only once: a second time, the number may belong to a file that another thread has opened."""
        if self.child_fd >= 0:
            os.close(self.child_fd)
            self.child_fd = -1

    def wait(
        self, process: subprocess.Popen[bytes], timeout_s: float, source: str, log_path: str | Path | None
    ) -> dict[str, Any]:
        self._close_child_fd()  # so that the pipe ends when the child does
        line = self._read_line(timeout_s)
        if line is None:
            raise errors.UnavailableError(
                f"the reward server was not ready within {timeout_s:g} s: still loading the scorers of {source}; "
                "give it longer if a model is large, or run `reward-server check` on the configuration"
            )
        if not line:
            where = f"in {log_path}" if log_path else "above"
            raise errors.UnavailableError(
                f"the reward server of {source} ended before it was ready (exit code {process.wait(_AT_ONCE_S)}); its "
                f"output is {where}"
            )
        answer = json.loads(line)
        if "error" in answer:
            raise getattr(errors, answer["type"], errors.ScorerLoadError)(answer["error"])
        return answer

    def _read_line(self, timeout_s: float) -> bytes | None:
        """Reads the line. Returns b"" if the child ended without one, and None after the time-out."""
        deadline = time.monotonic() + timeout_s
        line = b""
        with selectors.DefaultSelector() as selector:
            selector.register(self._fd, selectors.EVENT_READ)
            while not line.endswith(b"\n"):
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    return None
                if not (chunk := os.read(self._fd, 1 << 16)):
                    return b""
                line += chunk
        return line


def _end(process: subprocess.Popen[bytes], grace_s: float) -> int:
    """Drains the process by SIGTERM, ends it at once by a second SIGTERM, and kills it if it still runs after that."""
    for wait_s in (grace_s, _AT_ONCE_S):
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(wait_s)
    process.kill()
    return process.wait()


def private_folder() -> Path:
    """Makes a folder that only this user can enter, with a path that is short enough for a socket in it."""
    folder = tempfile.mkdtemp(prefix="reward-")
    if len(os.fsencode(f"{folder}/socket")) > _LONGEST_SOCKET_PATH:
        os.rmdir(folder)
        folder = tempfile.mkdtemp(prefix="reward-", dir="/tmp")
    return Path(folder)


@contextlib.contextmanager
def _config_file(config: str | Path | Mapping[str, Any]) -> Iterator[IO[bytes] | int]:
    """The child's standard input: the configuration if it is a mapping, else nothing."""
    if not isinstance(config, Mapping):
        yield subprocess.DEVNULL
        return
    try:
        text = json.dumps(dict(config), default=os.fspath)
    except (TypeError, ValueError) as error:
        raise errors.ConfigError(f"the server's configuration holds a value that YAML cannot hold: {error}") from error
    with tempfile.TemporaryFile() as file:
        file.write(text.encode())
        file.seek(0)
        yield file


@contextlib.contextmanager
def _log_file(log_path: str | Path | None) -> Iterator[IO[bytes] | int]:
    """The child's output: a file, or the standard error of this process (file descriptor 2)."""
    if log_path is None:
        yield 2
        return
    with open(log_path, "ab") as file:
        yield file
