"""One run: a program alone, or a program and its test, until it is known how it ended.

Owns the pipes of the confined processes, the deadline, the output limit, and the talk between a program and its test,
which is passed on here. Knows nothing of how a process is confined, nor of which output is expected.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import time
from pathlib import Path
from typing import Any

from reward_server.sandbox.backends import BACKENDS, Backend, Process, Sight
from reward_server.sandbox.folders import fits
from reward_server.sandbox.inside import script
from reward_server.sandbox.runs import End, Outcome, Plan, Run, SandboxError, UnusableTestError, end_of, last_line

READY = b"\x06"
_PIECE = 1 << 16
_START_S = 10.0  # for an interpreter to come up on a busy machine; no program runs yet
_THREADS = 64  # that a program may have where the kernel counts threads as processes
_LOOK_S = 0.1  # between looks at how much a program has written to its folder: no event tells of it
_LONGEST_LINE = 64 << 20


class ServerGoneError(Exception):
    """The server closed the line."""


class _Side:
    """One confined process of a run: what is still to be written to it, what it wrote, whether it is up."""

    def __init__(self, name: str, process: Process, request: bytes):
        self.name = name
        self.process = process
        self.pidfd = os.pidfd_open(process.pid)
        self.to_write = bytearray(request)
        self.close_stdin = False
        self.out = bytearray()
        self.errors = bytearray()
        self.is_ready = False
        self.printed = 0
        self.has_ended = False
        self._returncode: int | None = None

    def end(self) -> int:
        if self._returncode is None:
            with contextlib.suppress(ProcessLookupError):  # wherever it moved to: a group's kill misses who left it
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
            os.close(self.pidfd)
            self._returncode = self.process.end()
        return self._returncode

    def complaint(self) -> str:
        return last_line(self.errors.decode(errors="replace"))


class Running:
    """One run: a program alone, or a program and its test in two processes, with their talk passed between them."""

    def __init__(self, plan: Plan, folder: Path, server: int):
        self._plan = plan
        self._limits = plan.limits
        self._backend: Backend = BACKENDS[plan.backend]
        self._folder = folder
        self._selector = selectors.DefaultSelector()
        self._selector.register(server, selectors.EVENT_READ, self._on_server)
        self._sides: list[_Side] = []
        self._verdict: dict[str, Any] | None = None
        self._over_limit: End | None = None

    def result(self, run: Run) -> Outcome:
        """Raises SandboxError or UnusableTestError."""
        try:
            serve = run.test is not None
            program = self._start("program", run.program, serve)
            if run.test is None:
                self._feed(program, run.stdin.encode("utf-8", "surrogatepass"))
                program.close_stdin = True
            else:
                self._start("tests", run.test, serve)
            seconds = self._pump()
            returncode = program.end()
            self._check_started()
            return self._outcome(program, returncode, seconds)
        finally:
            for side in self._sides:
                side.end()
            self._selector.close()

    # ------------------------------------------------------------------------------------------------------- starting

    def _start(self, name: str, text: str, serve: bool) -> _Side:
        body = text.encode("utf-8", "surrogatepass")
        limits = self._limits
        processes = limits.processes + _THREADS if self._backend.threads_count else 0
        numbers = (limits.cpu_s, limits.memory_bytes, limits.disk_bytes, limits.open_files, processes, len(body))
        header = " ".join(map(str, (int(serve), *numbers)))
        folder = self._folder / name
        folder.mkdir()
        command = [*self._plan.python, "-c", _SCRIPTS[name, serve]]
        process = self._backend.start(command, folder, Sight(self._plan.readable), limits)
        side = _Side(name, process, header.encode() + b"\n" + body)
        self._sides.append(side)
        for fd in (process.stdin, process.stdout, process.stderr):
            os.set_blocking(fd, False)
        self._selector.register(process.stdout, selectors.EVENT_READ, lambda: self._on_output(side))
        self._selector.register(process.stderr, selectors.EVENT_READ, lambda: self._on_errors(side))
        self._selector.register(process.stdin, selectors.EVENT_WRITE, lambda: self._on_writable(side))
        self._selector.register(side.pidfd, selectors.EVENT_READ, lambda: self._on_end(side))
        return side

    def _check_started(self) -> None:
        for side in self._sides:
            if not side.is_ready:
                raise SandboxError(f"a process of the sandbox did not come up: {side.complaint() or 'it says nothing'}")

    # -------------------------------------------------------------------------------------------------------- pumping

    def _pump(self) -> float:
        """Passes on what is written until the run is over. Returns the seconds since all processes were up."""
        began, ready = time.monotonic(), None
        while not self._is_over():
            now = time.monotonic()
            if ready is None and all(side.is_ready for side in self._sides):
                ready = now
            deadline = began + _START_S if ready is None else ready + self._limits.wall_s
            if now >= deadline and ready is not None:
                deadline += min(self._starved_s(), self._limits.most_starved_s)
            if now >= deadline:
                self._over_limit = None if ready is None else End.TIME_LIMIT
                break
            for key, _ in self._selector.select(min(deadline - now, _LOOK_S)):
                if key.fd in self._selector.get_map():  # another event may have ended it
                    key.data()
            if ready is not None and not fits(self._folder, self._limits.disk_bytes):
                self._over_limit = End.OUTPUT_LIMIT
        return time.monotonic() - (ready or began)

    def _starved_s(self) -> float:
        """Seconds that the processes were ready to run and had no processor: a busy machine's, not theirs."""
        return sum(_waited_s(side.process.pid) for side in self._sides)

    def _is_over(self) -> bool:
        program_ended = self._sides[0].has_ended
        if len(self._sides) == 1:
            return program_ended or self._over_limit is not None
        return self._verdict is not None or self._over_limit is not None or self._sides[1].has_ended

    def _on_server(self) -> None:
        raise ServerGoneError

    def _on_end(self, side: _Side) -> None:
        """It ended: what it wrote until then is read, whoever else may hold its pipes open."""
        self._selector.unregister(side.pidfd)
        for fd, handler in ((side.process.stdout, self._on_output), (side.process.stderr, self._on_errors)):
            while fd in self._selector.get_map() and self._over_limit is None and handler(side):
                pass
        side.has_ended = True
        if side.name == "program" and len(self._sides) == 2:
            self._close_stdin(self._sides[1])

    def _on_output(self, side: _Side) -> bool:
        piece = self._read(side, side.process.stdout)
        if piece and not side.is_ready:
            side.is_ready, piece = piece[:1] == READY, piece[1:]
            if not side.is_ready:
                self._selector.unregister(side.process.stdout)
                return False
        side.out += piece
        if len(self._sides) == 2:
            self._pass_on(side, piece)
        return bool(piece)

    def _on_errors(self, side: _Side) -> bool:
        piece = self._read(side, side.process.stderr)
        side.errors = (side.errors + piece)[-4096:]
        return bool(piece)

    def _read(self, side: _Side, fd: int) -> bytes:
        """What is there, at most a piece. Counts it, unless it is the test's."""
        try:
            piece = os.read(fd, _PIECE)
        except BlockingIOError:
            return b""
        if not piece:
            self._selector.unregister(fd)
        side.printed += len(piece)
        if side.name == "program" and side.printed > self._limits.output_bytes:
            self._over_limit = End.OUTPUT_LIMIT
        return piece

    def _pass_on(self, side: _Side, piece: bytes) -> None:
        """Requests to the program, answers to the test; a verdict is the test's alone."""
        program, tests = self._sides
        if side is program:
            self._feed(tests, bytes(side.out))
            side.out.clear()
            return
        if len(side.out) > _LONGEST_LINE:
            raise UnusableTestError(f"a test hands more than {_LONGEST_LINE >> 20} MiB to the program in one call")
        if b"\n" not in piece:
            return
        *lines, rest = bytes(side.out).split(b"\n")
        side.out[:] = rest
        for line in lines:
            if line[:1] == b"C":
                self._feed(program, line[1:] + b"\n")
            elif line[:1] == b"V" and self._verdict is None:
                self._verdict = _verdict(line[1:])

    def _feed(self, side: _Side, data: bytes) -> None:
        side.to_write += data
        if not side.close_stdin and side.process.stdin not in self._selector.get_map() and not side.has_ended:
            self._selector.register(side.process.stdin, selectors.EVENT_WRITE, lambda: self._on_writable(side))

    def _on_writable(self, side: _Side) -> None:
        try:
            written = os.write(side.process.stdin, bytes(side.to_write[:_PIECE]))
        except BlockingIOError:
            return
        except BrokenPipeError:  # it does not read all of it, and need not
            written = len(side.to_write)
        del side.to_write[:written]
        if not side.to_write:
            self._selector.unregister(side.process.stdin)
            if side.close_stdin:
                _end_of_file(side)

    def _close_stdin(self, side: _Side) -> None:
        side.close_stdin = True
        if not side.to_write:
            _end_of_file(side)

    # -------------------------------------------------------------------------------------------------------- judging

    def _outcome(self, program: _Side, returncode: int, seconds: float) -> Outcome:
        if self._over_limit is not None:
            return Outcome(self._over_limit, detail=_WHY[self._over_limit].format(limits=self._limits))
        complaint = program.complaint()
        if len(self._sides) == 1:
            end = end_of(returncode, complaint, seconds, self._limits)
            return Outcome(end, program.out.decode(errors="replace"), _detail(end, returncode, complaint))
        return self._outcome_of_test(program, returncode, complaint, seconds)

    def _outcome_of_test(self, program: _Side, returncode: int, complaint: str, seconds: float) -> Outcome:
        verdict = self._verdict
        if verdict is None:  # it choked on what the program answered: the same tests run for other programs
            tests = self._sides[1]
            end = end_of(tests.end(), tests.complaint(), seconds, self._limits)
            end = End.RUNTIME_ERROR if end is End.EXITED else end
            return Outcome(end, detail=f"the test's process ended: {tests.complaint()}")
        if "unusable" in verdict:
            raise UnusableTestError(str(verdict["unusable"])[:200])
        if verdict.get("passed") is True:
            return Outcome(End.PASSED)
        if verdict.get("ended"):
            end = end_of(returncode, complaint, seconds, self._limits)
            if end is End.EXITED:
                return Outcome(End.RUNTIME_ERROR, detail="it ended before its test did")
            return Outcome(end, detail=_detail(end, returncode, complaint))
        detail = str(verdict.get("detail", ""))[:200]
        if verdict.get("is_assert"):
            return Outcome(End.WRONG_ANSWER, detail=detail)
        return Outcome(end_of(1, detail, seconds, self._limits), detail=detail)


_WHY = {
    End.TIME_LIMIT: "longer than {limits.wall_s:g} s by the clock",
    End.OUTPUT_LIMIT: "more than {limits.output_bytes} bytes of output, or {limits.disk_bytes} of files",
}
_SCRIPTS: dict[tuple[str, bool], str] = {
    ("program", False): script("program"),
    ("program", True): script("program", "plain"),
    ("tests", True): script("tests", "plain", "program"),
}


def _verdict(line: bytes) -> dict[str, Any]:
    try:
        verdict = json.loads(line)
    except ValueError:
        verdict = None
    if not isinstance(verdict, dict):
        raise UnusableTestError("the test wrote over its own verdict")
    return verdict


def _detail(end: End, returncode: int, complaint: str) -> str:
    if end is End.EXITED:
        return ""
    return complaint or (f"signal {-returncode}" if returncode < 0 else f"exit code {returncode}")


def _waited_s(pid: int) -> float:
    """Of the process's first thread: its second number in nanoseconds (Linux, Documentation/scheduler/sched-stats)."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError):
        return 0.0


def _end_of_file(side: _Side) -> None:
    """A pipe's end that is handed to us as a number alone is closed by putting another file in its place."""
    null = os.open("/dev/null", os.O_WRONLY)
    os.dup2(null, side.process.stdin)
    os.close(null)
