"""The three kinds of runs: with an input, with a call of a function, and against a test.

Owns what a program is fed, and the talk between a program and its test, which is passed on here. Knows nothing of how a
process is confined, nor of which output or value is expected.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from reward_server.sandbox.inside import PROGRAM_RUN, PROGRAM_SERVED
from reward_server.sandbox.pipes import Pipes
from reward_server.sandbox.running import Running
from reward_server.sandbox.runs import End, Limits, Outcome, Plan, Run, SandboxError, UnusableTestError, end_of
from reward_server.sandbox.test_host import TestHost

_LONGEST_LINE = 64 << 20


class WithInput(Running):
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


class WithCall(Running):
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


class WithTest(Running):
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


def _ended_early(returncode: int, complaint: str, seconds: float, limits: Limits, before: str) -> Outcome:
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
