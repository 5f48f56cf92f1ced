"""One run: a program with an input, with a call, or against a test, until it is known how it ended.

Owns the deadline, the limits of output and disk, and the talk between a program and its test, which is passed on here.
Knows nothing of how a process is confined, nor of which output is expected.

    runs = Runs(plan, folder, server)       for the life of a runner
    outcome = runs.result(run)              raises SandboxError, UnusableTestError, ServerGoneError
    runs.close()
"""

from __future__ import annotations

import json
import tempfile
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from reward_server.sandbox.confined import Confined
from reward_server.sandbox.folders import fits, remove
from reward_server.sandbox.inside import PROGRAM_RUN, PROGRAM_SERVED
from reward_server.sandbox.pipes import Pipes
from reward_server.sandbox.runs import End, Outcome, Plan, Run, SandboxError, UnusableTestError, end_of
from reward_server.sandbox.test_host import TestHost

_START_S = 10.0  # for an interpreter to come up on a busy machine; no program runs yet
_LOOK_S = 0.1  # between looks at how much a program has written to its folder: no event tells of it
_LONGEST_LINE = 64 << 20


class ServerGoneError(Exception):
    """The server closed the line."""


class Runs:
    """The runs of a runner, one after another, and the host of tests that they share."""

    def __init__(self, plan: Plan, folder: Path, server: int):
        """`server` is the line to the server: whatever comes there during a run ends it."""
        self._plan, self._folder, self._server = plan, folder, server
        self._pipes = Pipes()
        self._host: TestHost | None = None

    def result(self, run: Run) -> Outcome:
        own = Path(tempfile.mkdtemp(dir=self._folder))
        self._pipes.on_readable(self._server, _server_is_gone)
        try:
            if run.test is not None:
                return self._tested(run, own)
            running = (_WithCall if run.call is not None else _WithInput)(self._plan, self._pipes, own, run)
            try:
                return running.outcome()
            finally:
                running.end()
        finally:
            self._pipes.forget(self._server)
            remove(own)

    def close(self) -> None:
        """Ends the host of the tests."""
        if self._host is not None:
            self._host.end()
            remove(self._host.confined.folder)
            self._host = None

    def _tested(self, run: Run, own: Path) -> Outcome:
        """The host is kept only after a run that ended well: whatever goes wrong must not reach the next test."""
        host, self._host = self._sound_host(), None
        running: _WithTest | None = None
        is_kept = False
        try:
            running = _WithTest(self._plan, self._pipes, own, run, host)
            outcome = running.outcome()
            running.end()
            is_kept = running.is_settled and host.finish()
            return outcome
        finally:
            if running is not None:
                running.end()
            self._host = host
            if not is_kept:
                self.close()

    def _sound_host(self) -> TestHost:
        """The host of the last test, or a new one: somebody may have killed it since."""
        self._pipes.wait(0)
        if self._host is not None and not self._host.confined.has_ended:
            return self._host
        self.close()
        return TestHost(self._plan, self._pipes, Path(tempfile.mkdtemp(dir=self._folder)) / "tests")


def _server_is_gone() -> None:
    raise ServerGoneError


class _Running(ABC):
    """A program's process, and the wait until its run is over."""

    def __init__(self, plan: Plan, pipes: Pipes, folder: Path, run: Run, modules: tuple[str, ...]):
        self._limits = plan.limits
        self._pipes = pipes
        self._over_limit: End | None = None
        served = (("1" if run.common_names else ""),) if modules is PROGRAM_SERVED else ()
        self._program = Confined(
            plan,
            pipes,
            folder / "program",
            modules,
            (run.before, run.program, *served),
            on_output=self._on_output,
            on_end=self._on_end,
        )

    def outcome(self) -> Outcome:
        seconds = self._wait()
        returncode = self.end()
        self._check_it_came_up()
        if self._over_limit is not None:
            return Outcome(self._over_limit, detail=_WHY[self._over_limit].format(limits=self._limits))
        return self._judged(returncode, seconds)

    def end(self) -> int:
        """Ends the program. Returns its exit code."""
        return self._program.end()

    @abstractmethod
    def _on_output(self, piece: bytes) -> None:
        """Takes what the program wrote to its standard output."""

    def _on_end(self) -> None:  # noqa: B027 - only a test has to be told
        """Told once the program has ended, and all that it wrote was handed on."""

    @abstractmethod
    def _is_over(self) -> bool: ...

    @abstractmethod
    def _judged(self, returncode: int, seconds: float) -> Outcome:
        """What came of a run that met no limit of ours; `seconds` since all processes were up."""

    def _is_ready(self) -> bool:
        return self._program.is_ready

    def _check_it_came_up(self) -> None:
        self._program.check_it_came_up()

    def _folders(self) -> list[Path]:
        return [self._program.folder]

    def _pids(self) -> list[int]:
        return [self._program.pid]

    def _wait(self) -> float:
        """Until the run is over or a limit is met. Returns the seconds since all processes were up."""
        began, ready = time.monotonic(), None
        while not self._is_over() and self._over_limit is None:
            now = time.monotonic()
            if ready is None and self._is_ready():
                ready = now
            deadline = began + _START_S if ready is None else ready + self._limits.wall_s
            if now >= deadline and ready is not None:
                deadline += min(self._starved_s(), self._limits.most_starved_s)
            if now >= deadline:
                self._over_limit = None if ready is None else End.TIME_LIMIT
                break
            self._pipes.wait(min(deadline - now, _LOOK_S))
            self._look_at_output(ready is not None)
        return time.monotonic() - (ready or began)

    def _look_at_output(self, has_begun: bool) -> None:
        fit = all(fits(folder, self._limits.disk_bytes) for folder in self._folders()) if has_begun else True
        if not fit or self._program.printed > self._limits.output_bytes:
            self._over_limit = End.OUTPUT_LIMIT

    def _starved_s(self) -> float:
        """Seconds that the processes were ready to run and had no processor: a busy machine's, not theirs."""
        return sum(map(_waited_s, self._pids()))


class _WithInput(_Running):
    """The program is run as a script, with a standard input."""

    def __init__(self, plan: Plan, pipes: Pipes, folder: Path, run: Run):
        self._printed = bytearray()
        super().__init__(plan, pipes, folder, run, PROGRAM_RUN)
        pipes.feed(self._program.stdin, run.stdin.encode("utf-8", "surrogatepass"), end_of_file=True)

    def _on_output(self, piece: bytes) -> None:
        self._printed += piece

    def _is_over(self) -> bool:
        return self._program.has_ended

    def _judged(self, returncode: int, seconds: float) -> Outcome:
        complaint = self._program.complaint()
        end = end_of(returncode, complaint, seconds, self._limits)
        return Outcome(end, self._printed.decode(errors="replace"), _detail(end, returncode, complaint))


class _WithCall(_Running):
    """One function of the program is called. What it returned goes to the server as it came."""

    def __init__(self, plan: Plan, pipes: Pipes, folder: Path, run: Run):
        assert run.call is not None
        self._answer = bytearray()
        super().__init__(plan, pipes, folder, run, PROGRAM_SERVED)
        pipes.feed(self._program.stdin, run.call.encode() + b"\n")

    def _on_output(self, piece: bytes) -> None:
        self._answer += piece

    def _is_over(self) -> bool:
        return self._program.has_ended or b"\n" in self._answer

    def _judged(self, returncode: int, seconds: float) -> Outcome:
        line, newline, _ = self._answer.partition(b"\n")
        if not newline:
            return _ended_early(returncode, self._program.complaint(), seconds, self._limits, "it returned")
        answer = _read_answer(bytes(line))
        if answer is None:
            return Outcome(End.RUNTIME_ERROR, detail="an unreadable answer")
        kind, *rest = answer
        if kind == "value":
            return Outcome(End.RETURNED, line.decode(errors="replace"))
        detail = f"{rest[0][0]}: {rest[1]}"[:200]
        return Outcome(end_of(1, detail, seconds, self._limits), detail=detail)


class _WithTest(_Running):
    """A test runs in a process of its own and calls the program: requests and answers are passed on."""

    def __init__(self, plan: Plan, pipes: Pipes, folder: Path, run: Run, host: TestHost):
        assert run.test is not None
        self._host = host
        self._verdict: dict[str, Any] | None = None
        self._test = host.start(run.test, self._on_line)
        super().__init__(plan, pipes, folder, run, PROGRAM_SERVED)

    @property
    def is_settled(self) -> bool:
        """Whether the test came to a verdict."""
        return self._verdict is not None

    def _on_output(self, piece: bytes) -> None:
        if not self._test.has_ended:
            self._test.answer(piece)

    def _on_end(self) -> None:
        if not self._test.has_ended:
            self._test.end_of_answers()

    def _on_line(self, line: bytes) -> None:
        """A request of the test's goes to the program. A verdict is the test's alone."""
        if line[:1] == b"C" and not self._program.has_ended:
            self._pipes.feed(self._program.stdin, line[1:] + b"\n")
        elif line[:1] == b"V" and self._verdict is None:
            self._verdict = _read_verdict(line[1:])

    def _is_over(self) -> bool:
        if self._test.unread > _LONGEST_LINE:
            raise UnusableTestError(f"a test hands more than {_LONGEST_LINE >> 20} MiB to the program in one call")
        has_program = self._program.is_ready or self._program.has_ended
        return has_program and (self._verdict is not None or self._test.has_ended)

    def _is_ready(self) -> bool:
        return self._program.is_ready and self._test.is_ready

    def _check_it_came_up(self) -> None:
        super()._check_it_came_up()
        self._host.confined.check_it_came_up()

    def _folders(self) -> list[Path]:
        return [*super()._folders(), self._host.confined.folder]

    def _pids(self) -> list[int]:
        return [*super()._pids(), *([self._test.pid] if self._test.pid else [])]

    def _judged(self, returncode: int, seconds: float) -> Outcome:
        verdict = self._verdict
        if verdict is None and self._host.confined.has_ended:
            raise SandboxError(f"the process that hosts the tests ended: {self._host.confined.complaint()}")
        if verdict is None:  # it choked on what the program answered: the same tests run for other programs
            complaint = self._host.confined.complaint()
            end = end_of(self._test.returncode or 0, complaint, seconds, self._limits)
            end = End.RUNTIME_ERROR if end is End.EXITED else end
            return Outcome(end, detail=f"the test's process ended: {complaint}")
        if "unusable" in verdict:
            raise UnusableTestError(str(verdict["unusable"])[:200])
        if verdict.get("passed") is True:
            return Outcome(End.PASSED)
        if verdict.get("ended"):
            return _ended_early(returncode, self._program.complaint(), seconds, self._limits, "its test did")
        detail = str(verdict.get("detail", ""))[:200]
        if verdict.get("is_assert"):
            return Outcome(End.WRONG_ANSWER, detail=detail)
        return Outcome(end_of(1, detail, seconds, self._limits), detail=detail)


_WHY = {
    End.TIME_LIMIT: "longer than {limits.wall_s:g} s by the clock",
    End.OUTPUT_LIMIT: "more than {limits.output_bytes} bytes of output, or {limits.disk_bytes} of files",
}


def _ended_early(returncode: int, complaint: str, seconds: float, limits: Any, before: str) -> Outcome:
    """A program that ended while it was asked."""
    end = end_of(returncode, complaint, seconds, limits)
    if end is End.EXITED:
        return Outcome(End.RUNTIME_ERROR, detail=f"it ended before {before}")
    return Outcome(end, detail=_detail(end, returncode, complaint))


def _read_verdict(line: bytes) -> dict[str, Any]:
    try:
        verdict = json.loads(line)
    except ValueError:
        verdict = None
    if not isinstance(verdict, dict):
        raise UnusableTestError("the test wrote over its own verdict")
    return verdict


def _read_answer(line: bytes) -> list[Any] | None:
    """`["value", …]` or `["raised", [name, …], text]`; None for whatever else a program may have written."""
    try:
        answer = json.loads(line)
    except (ValueError, RecursionError):
        return None
    match answer:
        case ["value", _] | ["raised", [str(), *_], str()]:
            return answer
    return None


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
