"""Programs of a user's, run as a terminal runs them: a process group of their own, and their output as it comes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from tests.support.processes import descendants, is_alive, wait_until


@dataclass
class Program:
    """A running program."""

    process: subprocess.Popen[str]

    def read_until(self, start: str) -> str:
        """The first line of its standard output that begins with `start`."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(start):
                return line.strip()
        raise AssertionError(f"it ended without a line {start!r}: {self.process.communicate(timeout=30)[1]}")

    def signal_group(self, number: signal.Signals, timeout_s: float = 60.0) -> tuple[int, str]:
        """Sends a signal to the process group, as Ctrl-C does. Returns the exit code and what went to standard error.

        Asserts that no process is left that the program started.
        """
        started = descendants(self.process.pid)
        os.killpg(self.process.pid, number)
        _, errors = self.process.communicate(timeout=timeout_s)
        assert wait_until(lambda: not any(map(is_alive, started)), 10), [pid for pid in started if is_alive(pid)]
        return self.process.returncode, errors


@contextmanager
def running(*command: str, stdin: str = "", env: Mapping[str, str] | None = None) -> Iterator[Program]:
    """A Python program (`-c CODE` or `-m MODULE …`), killed at the end of the block if it still runs."""
    process = subprocess.Popen(
        [sys.executable, *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, **(env or {})},
    )
    assert process.stdin is not None
    process.stdin.write(stdin)
    process.stdin.close()
    process.stdin = None  # or `communicate` would flush it
    try:
        yield Program(process)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
