"""Processes as a test sees them: who is alive, who descends from whom. Reads /proc, so it needs Linux."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = str(Path(__file__).parents[2])


def is_alive(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    return _state(pid) not in (None, "Z", "X")


def descendants(pid: int) -> set[int]:
    """The living children of a process, theirs, and so on."""
    parents = {child: _parent(child) for child in _pids() if is_alive(child)}
    found: set[int] = set()
    layer = {pid}
    while layer:
        layer = {child for child, parent in parents.items() if parent in layer} - found
        found |= layer
    return found


def wait_until(holds: Callable[[], bool], timeout_s: float) -> bool:
    """Whether it holds within the time. For what no event tells of: the end of a process that is no child of ours."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _fields(pid: int) -> list[str]:
    """What follows the name in /proc/PID/stat: state, parent, …; empty if there is no such process."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return []


def _state(pid: int) -> str | None:
    fields = _fields(pid)
    return fields[0] if fields else None


def _parent(pid: int) -> int:
    fields = _fields(pid)
    return int(fields[1]) if fields else 0


def run_forking(code: str, *arguments: str) -> None:
    """Runs a program that forks, and fails if it does.

    It has its own process: in one of many tests, whose clients and servers have threads too, gRPC may not survive it.
    """
    command = [sys.executable, "-c", code, *arguments]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([ROOT, os.environ.get("PYTHONPATH", "")])}
    run = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 0, run.stderr
