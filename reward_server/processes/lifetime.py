"""The lifetimes of processes: noticing that a process ends, and ending together with one.

Owns the calls to the operating system for that. Knows nothing of what the processes do.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import select
import signal
import sys
import threading
import time

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


async def ended(pid: int) -> None:
    """Returns when the process has ended, at once if there is no such process. Does not reap a child."""
    if not hasattr(os, "pidfd_open"):
        await _ended_by_polling(pid)
        return
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    except OSError:  # a kernel or sandbox without pidfd
        await _ended_by_polling(pid)
        return
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(pidfd, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(pidfd)
        os.close(pidfd)


async def _ended_by_polling(pid: int) -> None:
    """Polls twice a second, where the system offers no event."""
    while _exists(pid):  # noqa: ASYNC110 - there is nothing to wait on
        await asyncio.sleep(0.5)


def _exists(pid: int) -> bool:
    with contextlib.suppress(ChildProcessError):  # a child of ours that ended and is not reaped still "exists"
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def die_with_parent(parent_pid: int, lifeline_fd: int) -> None:
    """Ends this process with its parent: by the kernel (Linux), and when the other end of the lifeline closes.

    The kernel kills it even while C code holds the interpreter's lock. The lifeline works on every system.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent_pid:  # the parent ended before the call
            os._exit(1)
    threading.Thread(target=_end_on_eof, args=(lifeline_fd,), name="lifeline", daemon=True).start()


def _end_on_eof(fd: int) -> None:
    os.read(fd, 1)
    os.kill(os.getpid(), signal.SIGKILL)


def kill_after_end_of(pid: int, grace_s: float) -> None:
    """Kills this process `grace_s` seconds after another one ends, even if its event loop is blocked by then.

    Does nothing on systems without pidfd (macOS).
    """
    with contextlib.suppress(AttributeError, OSError):
        pidfd = os.pidfd_open(pid)
        threading.Thread(target=_kill_after, args=(pidfd, grace_s), name="last resort", daemon=True).start()


def _kill_after(pidfd: int, grace_s: float) -> None:
    select.select([pidfd], [], [])
    time.sleep(grace_s)
    os.kill(os.getpid(), signal.SIGKILL)


def has_terminal() -> bool:
    """Whether this process has a terminal that is open, and would get SIGHUP when that closes."""
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # nohup
        return False
    with contextlib.suppress(OSError):
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
        return True
    return False


def how_it_ended(returncode: int) -> str:
    """`exit code 3`, or the name of the signal."""
    if returncode >= 0:
        return f"exit code {returncode}"
    try:
        name = signal.Signals(-returncode).name
    except ValueError:
        name = f"signal {-returncode}"
    return f"{name}, out of memory?" if name == "SIGKILL" else name
