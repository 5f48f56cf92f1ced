"""How a process is confined, as values: `Sandlock()`, `Bubblewrap()`, `Unconfined()`; `BACKENDS` names them.

Owns the options of the two tools. Knows nothing of programs: it is handed a command and a folder. Runs in the runner's
process, never in the server's.

    process = backend.start(command, folder, sight, limits, is_folder_shared)     raises SandboxError
    process.pid, process.stdin, process.stdout, process.stderr  (file descriptors)
    returncode = process.end()                                  kills it and all that it started
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from reward_server.sandbox.runs import Limits, SandboxError

ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "LANG": "C.UTF-8",
    "HOME": "/",
    # One thread each, because as many programs run side by side as there are processors.
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}
_SYSTEM = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo", "/etc/ld.so.cache")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")

# Landlock restricts the contents of files but not their owner, mode and times, and root may set the clock. Denying
# these calls turns off sandlock's copy on write, which limits the size of a folder; the runner watches it instead.
_DENIED = (
    *("chmod", "fchmod", "fchmodat", "fchmodat2", "chown", "fchown", "lchown", "fchownat"),
    *("utime", "utimes", "utimensat", "futimesat", "setxattr", "lsetxattr", "fsetxattr"),
    *("removexattr", "lremovexattr", "fremovexattr", "mknod", "mknodat", "chroot", "open_by_handle_at"),
    *("clock_settime", "settimeofday", "adjtimex", "clock_adjtime", "setpriority", "syslog", "acct", "quotactl"),
    *("memfd_create", "memfd_secret"),  # memory that no limit of a process counts
)


@dataclass(frozen=True, slots=True)
class Sight:
    """What a program may read of the file system, in addition to the system's libraries."""

    folders: tuple[str, ...]

    @property
    def all(self) -> list[str]:
        return [path for path in dict.fromkeys((*_SYSTEM, *self.folders)) if os.path.exists(path)]


class Process(Protocol):
    """A confined process and its three pipes."""

    pid: int
    stdin: int
    stdout: int
    stderr: int

    def end(self) -> int:
        """Kills it with all that it started and closes the pipes. Returns the exit code, negative for a signal."""


class Backend(Protocol):
    """One way to confine."""

    name: ClassVar[str]
    needs_namespaces: ClassVar[bool]
    """Whether the runner should get a process namespace of its own, in which nothing outlives it."""
    threads_count: ClassVar[bool]
    """Whether the kernel's count limits the processes, which counts threads as well."""
    limits_processes: ClassVar[bool]
    """Whether the limit of processes holds exactly."""

    def missing(self) -> str | None:
        """What this machine lacks and the way out; None if it lacks nothing."""

    def version(self) -> str: ...

    def start(
        self, command: Sequence[str], folder: Path, sight: Sight, limits: Limits, is_folder_shared: bool = False
    ) -> Process:
        """Starts a command in an empty folder of its own. Where that is shared, the caller sees the files in it."""


@dataclass(frozen=True, slots=True)
class Sandlock:
    """Landlock and seccomp by the package `sandlock`: no root, no daemon. Linux 6.12 or newer, x86_64 and arm64."""

    name: ClassVar[str] = "sandlock"
    needs_namespaces: ClassVar[bool] = True
    threads_count: ClassVar[bool] = False
    limits_processes: ClassVar[bool] = True

    def missing(self) -> str | None:
        try:
            import sandlock  # noqa: PLC0415 - only where it runs
        except ImportError as error:
            return f"the package sandlock cannot be imported ({error}): pip install 'grpo-plugin[server]'"
        have, need = sandlock.landlock_abi_version(), sandlock.min_landlock_abi()
        if have >= need:
            return None
        return f"this kernel's Landlock is version {have} and sandlock needs {need}: take Linux 6.12 or newer"

    def version(self) -> str:
        from importlib.metadata import version  # noqa: PLC0415 - only where it runs

        return f"sandlock-{version('sandlock')}"

    def start(
        self, command: Sequence[str], folder: Path, sight: Sight, limits: Limits, is_folder_shared: bool = False
    ) -> Process:
        import sandlock  # noqa: PLC0415 - only where it runs
        from sandlock.sandbox import StdioMode  # noqa: PLC0415

        try:
            sandbox = sandlock.Sandbox(
                # The default comes from the process id, and every runner has id 1 in its namespace.
                name=uuid.uuid4().hex,
                fs_readable=[*sight.all, *_DEVICES],
                fs_writable=[str(folder)],
                cwd=str(folder),
                max_processes=limits.processes,
                max_open_files=limits.open_files,
                extra_deny_syscalls=list(_DENIED),
                clean_env=True,
                env=ENVIRONMENT,
            )
            pipe = StdioMode.PIPED
            return _SandlockProcess(sandbox.popen(list(command), stdin=pipe, stdout=pipe, stderr=pipe))
        except (RuntimeError, ValueError, OSError, sandlock.SandlockError) as error:
            raise SandboxError(f"sandlock cannot start a process: {error}") from error


class _SandlockProcess:
    def __init__(self, process: Any):
        self._process = process
        self.pid: int = process.pid
        self.stdin, self.stdout, self.stderr = (
            stream.fileno() for stream in (process.stdin, process.stdout, process.stderr)
        )

    def end(self) -> int:
        with contextlib.suppress(OSError, RuntimeError):
            self._process.kill()
        result = self._process.wait(timeout=5)  # sandlock ends what the process started, too
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            with contextlib.suppress(OSError):
                stream.close()
        if result.error:
            raise SandboxError(f"sandlock lost a process: {result.error}")
        if result.signal > 0:
            return -int(result.signal)
        return -signal.SIGKILL if result.reason else int(result.exit_code)


@dataclass(frozen=True, slots=True)
class Bubblewrap:
    """Namespaces by Debian's `bubblewrap` (`bwrap`). Needs unprivileged user namespaces."""

    name: ClassVar[str] = "bubblewrap"
    needs_namespaces: ClassVar[bool] = False  # it makes its own
    threads_count: ClassVar[bool] = True
    limits_processes: ClassVar[bool] = False

    def missing(self) -> str | None:
        if shutil.which("bwrap") is None:
            return "there is no bwrap: apt-get install bubblewrap (the package of that name on PyPI is something else)"
        if os.geteuid() == 0:
            return "the kernel does not limit root's processes: run the server as another user, or take sandlock"
        return None

    def version(self) -> str:
        asked = subprocess.run(["bwrap", "--version"], capture_output=True, text=True, check=True, timeout=10)
        return "-".join(asked.stdout.split()[:2])

    def start(
        self, command: Sequence[str], folder: Path, sight: Sight, limits: Limits, is_folder_shared: bool = False
    ) -> Process:
        binds = [part for path in sight.all for part in ("--ro-bind", path, path)]
        binds += [part for path in _DEVICES for part in ("--dev-bind-try", path, path)]
        in_memory = ("--size", str(limits.disk_bytes), "--tmpfs", "/work")
        return _Child(
            [
                *("bwrap", "--unshare-all", "--unshare-user", "--die-with-parent", "--new-session"),
                *("--cap-drop", "ALL", "--clearenv"),
                *(part for name, value in ENVIRONMENT.items() for part in ("--setenv", name, value)),
                *binds,
                *(("--bind", str(folder), "/work") if is_folder_shared else in_memory),
                *("--chdir", "/work", "--"),
                *command,
            ],
            folder,
        )


@dataclass(frozen=True, slots=True)
class Unconfined:
    """No confinement: programs may do what the server's user may, and evade the limits if they try."""

    name: ClassVar[str] = "none"
    needs_namespaces: ClassVar[bool] = True
    threads_count: ClassVar[bool] = False
    limits_processes: ClassVar[bool] = False

    def missing(self) -> str | None:
        return None

    def version(self) -> str:
        return "none"

    def start(
        self, command: Sequence[str], folder: Path, sight: Sight, limits: Limits, is_folder_shared: bool = False
    ) -> Process:
        return _Child(command, folder)


class _Child:
    """A child process in a session of its own."""

    def __init__(self, command: Sequence[str], folder: Path):
        pipe = subprocess.PIPE
        try:
            self._process = subprocess.Popen(
                command,
                cwd=folder,
                env=ENVIRONMENT,
                stdin=pipe,
                stdout=pipe,
                stderr=pipe,
                bufsize=0,
                start_new_session=True,
            )
        except OSError as error:
            raise SandboxError(f"cannot start {command[0]}: {error}") from error
        self._pipes = [self._process.stdin, self._process.stdout, self._process.stderr]
        self.pid = self._process.pid
        self.stdin, self.stdout, self.stderr = (stream.fileno() for stream in self._pipes if stream is not None)

    def end(self) -> int:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        returncode = self._process.wait(timeout=5)
        for stream in self._pipes:
            if stream is not None:
                stream.close()
        return 128 - returncode if returncode > 128 else returncode  # bwrap reports a signal as a shell does


BACKENDS: dict[str, Backend] = {backend.name: backend for backend in (Sandlock(), Bubblewrap(), Unconfined())}
