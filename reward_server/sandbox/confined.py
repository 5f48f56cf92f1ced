"""One confined process with its three pipes, from its start to its end.

Owns the request that sets its limits, its coming up, its complaints and its end. Knows nothing of what it runs.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

from reward_server.sandbox.backends import BACKENDS, Sight
from reward_server.sandbox.inside import command
from reward_server.sandbox.inside.program import READY
from reward_server.sandbox.pipes import Pipes, read
from reward_server.sandbox.runs import Limits, Plan, SandboxError, last_line

_THREADS = 64  # that a process may have where the kernel counts threads as processes
_MOST_PIECES = 17  # that a pipe may hold, whatever its writer made of it (1 MiB, pipe(7)); others may go on writing
_COMPLAINTS = 4096  # bytes of standard error that are kept


class Confined:
    """A process that runs modules of `inside`. Once `is_ready` is true it has its limits and begins with its work."""

    def __init__(
        self,
        plan: Plan,
        pipes: Pipes,
        folder: Path,
        modules: Sequence[str],
        texts: Sequence[str] = (),
        *,
        on_output: Callable[[bytes], object],
        on_end: Callable[[], object],
        limits: Limits | None = None,
        is_folder_shared: bool = False,
    ):
        """Raises SandboxError. `texts` is what the process is asked to run; feed what follows it to `stdin`."""
        self._pipes, self._on_output, self._on_end = pipes, on_output, on_end
        self.folder = folder
        folder.mkdir()
        limits = limits or plan.limits
        backend = BACKENDS[plan.backend]
        self.process = backend.start(
            command(plan.python, modules), folder, Sight(plan.readable), limits, is_folder_shared
        )
        self._pidfd = os.pidfd_open(self.process.pid)
        self.is_ready = self.has_ended = False
        self.errors = bytearray()
        self.printed = 0
        """Bytes on standard output and standard error."""
        self._returncode: int | None = None
        for fd in (self.stdin, self.process.stdout, self.process.stderr):
            os.set_blocking(fd, False)
        pipes.on_readable(self.process.stdout, self._read_output)
        pipes.on_readable(self.process.stderr, self._read_errors)
        pipes.on_readable(self._pidfd, self._ended)
        counted = limits.processes + _THREADS if backend.threads_count else 0
        bodies = [text.encode("utf-8", "surrogatepass") for text in texts]
        numbers = (limits.cpu_s, limits.memory_bytes, limits.disk_bytes, limits.open_files, counted, *map(len, bodies))
        pipes.feed(self.stdin, b"".join((" ".join(map(str, numbers)).encode(), b"\n", *bodies)))

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def stdin(self) -> int:
        return self.process.stdin

    def complaint(self) -> str:
        """The last line of its standard error."""
        return last_line(self.errors.decode(errors="replace"))

    def check_it_came_up(self) -> None:
        """Raises SandboxError if it did not."""
        if not self.is_ready:
            raise SandboxError(f"a process of the sandbox did not come up: {self.complaint() or 'it says nothing'}")

    def end(self) -> int:
        """Ends it with all that it started. Returns its exit code, negative for a signal. May be called again."""
        if self._returncode is None:
            for fd in (self._pidfd, self.stdin, self.process.stdout, self.process.stderr):
                self._pipes.forget(fd)
            with contextlib.suppress(ProcessLookupError):  # a process that left its group is not killed with the group
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            os.close(self._pidfd)
            self._returncode = self.process.end()
        return self._returncode

    def _read_output(self) -> bool:
        piece = self._read(self.process.stdout)
        if piece and not self.is_ready:
            self.is_ready, piece = piece[:1] == READY, piece[1:]
            if not self.is_ready:
                self._pipes.forget(self.process.stdout)
                return False
        if piece:
            self._on_output(piece)
        return bool(piece)

    def _read_errors(self) -> bool:
        piece = self._read(self.process.stderr)
        self.errors = (self.errors + piece)[-_COMPLAINTS:]
        return bool(piece)

    def _read(self, fd: int) -> bytes:
        piece = read(fd)
        if piece == b"":
            self._pipes.forget(fd)
        self.printed += len(piece or b"")
        return piece or b""

    def _ended(self) -> None:
        """Reads what the process wrote until it ended. Others may still hold its pipes open."""
        self._pipes.forget(self._pidfd)
        for read_some in (self._read_output, self._read_errors):
            for _ in range(_MOST_PIECES):
                if not read_some():
                    break
        self.has_ended = True
        self._on_end()
