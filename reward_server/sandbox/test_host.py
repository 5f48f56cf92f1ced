"""The process that hosts the tests, seen from the runner: started once, asked for one test after another.

Owns the host's process and the two named pipes of each test. Nothing of a program's ever reaches the host itself, whose
standard input only the runner writes to: a program's answers go to the test's own process, through pipes that are gone
after it. So a program cannot leave anything for the test of the next one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable
from pathlib import Path

from reward_server.sandbox.backends import BACKENDS
from reward_server.sandbox.confined import Confined
from reward_server.sandbox.inside import TESTS
from reward_server.sandbox.inside.program import READY
from reward_server.sandbox.pipes import Pipes, read
from reward_server.sandbox.runs import Plan

_SETTLE_S = 2.0  # for a test to exit once it has told its verdict


class TestHost:
    """A host of tests. It is kept for the next test only if the last one left nothing behind."""

    __test__ = False  # for pytest: it is no test

    def __init__(self, plan: Plan, pipes: Pipes, folder: Path):
        """Raises SandboxError."""
        self._pipes = pipes
        self._cpu_s = plan.limits.cpu_s
        self._count = 0
        self._said = bytearray()
        self._test: Test | None = None
        # Where nothing limits processes, a test may leave some behind.
        self._is_for_many = BACKENDS[plan.backend].limits_processes and plan.limits.processes == 1
        self.confined = Confined(
            plan,
            pipes,
            folder,
            TESTS,
            on_output=self._on_output,
            on_end=self._on_end,
            # One process for itself. It forks for as long as the runner lives, so only its tests' time is limited.
            limits=dataclasses.replace(plan.limits, processes=plan.limits.processes + 1, time_s=0.0),
            is_folder_shared=True,
        )

    def start(self, text: str, on_line: Callable[[bytes], object]) -> Test:
        """Starts a test. `on_line` is handed each line that it writes."""
        self._count += 1
        self.confined.errors.clear()
        self._test = Test(self._pipes, self.confined.folder, self._count, on_line)
        body = text.encode("utf-8", "surrogatepass")
        self._pipes.feed(self.confined.stdin, f"{self._count} {self._cpu_s} {len(body)}\n".encode() + body)
        return self._test

    def finish(self) -> bool:
        """Waits until a test that told its verdict has ended. Returns whether the host can be asked for another."""
        test = self._test
        assert test is not None, "start() comes first"
        until = time.monotonic() + _SETTLE_S
        while not test.has_ended and time.monotonic() < until:
            self._pipes.wait(until - time.monotonic())
        self._test = None
        test.close()
        is_clean = test.returncode == 0 and not os.listdir(self.confined.folder)
        return self._is_for_many and is_clean and not self.confined.has_ended

    def end(self) -> None:
        """Ends it, and the test that it runs."""
        if self._test is not None:
            self._test.close()
        self.confined.end()

    def _on_output(self, piece: bytes) -> None:
        """Lines of the host: P and a process's id, or E and its exit code."""
        *lines, rest = bytes(self._said + piece).split(b"\n")
        self._said = bytearray(rest)
        for line in lines:
            if self._test is None:
                continue
            if line[:1] == b"P":
                self._test.pid = int(line[1:])
            elif line[:1] == b"E":
                self._test.on_end(int(line[1:]))

    def _on_end(self) -> None:
        if self._test is not None:
            self._test.on_end(self.confined.end())


class Test:
    """A test under way: a process of its own and its two pipes."""

    __test__ = False

    def __init__(self, pipes: Pipes, folder: Path, number: int, on_line: Callable[[bytes], object]):
        self._pipes, self._on_line = pipes, on_line
        self._paths = [folder / f"in-{number}", folder / f"out-{number}"]
        for path in self._paths:
            os.mkfifo(path, 0o600)
        # Both for reading and writing: an open file for one direction would wait for the other side.
        self._stdin, self._stdout = (os.open(path, os.O_RDWR | os.O_NONBLOCK) for path in self._paths)
        self._out = bytearray()
        self._is_answered = False  # no more answers come
        self.is_ready = self.has_ended = False
        self.pid: int | None = None
        self.returncode: int | None = None
        pipes.on_readable(self._stdout, self._read)

    @property
    def unread(self) -> int:
        """Bytes of a line that is not ended yet."""
        return len(self._out)

    def answer(self, data: bytes) -> None:
        """Hands it what the program wrote."""
        self._pipes.feed(self._stdin, data)

    def end_of_answers(self) -> None:
        """Tells it that the program has ended: once it has opened its pipe, or it would wait for one to be there."""
        self._is_answered = True
        if self.is_ready:
            self._pipes.feed(self._stdin, b"", end_of_file=True)

    def on_end(self, returncode: int) -> None:
        """Its process has ended: reads what it wrote until then."""
        while not self.has_ended and self._read():  # nobody writes any more: this comes to an end
            pass
        self.has_ended, self.returncode = True, returncode

    def close(self) -> None:
        for fd in (self._stdin, self._stdout):
            self._pipes.forget(fd)
            os.close(fd)
        self._remove_paths()

    def _read(self) -> bool:
        piece = read(self._stdout)
        if piece and not self.is_ready:
            assert piece[:1] == READY, "a test begins by saying that it is up"
            self.is_ready, piece = True, piece[1:]
            self._remove_paths()
            if self._is_answered:
                self.end_of_answers()
        self._out += piece or b""
        if b"\n" in (piece or b""):
            *lines, rest = bytes(self._out).split(b"\n")
            self._out[:] = rest
            for line in lines:
                self._on_line(line)
        return bool(piece)

    def _remove_paths(self) -> None:
        for path in self._paths:
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
