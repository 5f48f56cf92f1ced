"""The values of the sandbox: the limits, what is to be run, and how it ended.

Owns the classification of ends. Knows no process: it is handed exit codes and the last line of standard error.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import math
import re
import signal
from dataclasses import dataclass
from typing import Any


class SandboxError(RuntimeError):
    """The sandbox itself failed. That says nothing about the program, so it is no reason for a score."""


class UnusableTestError(ValueError):
    """The test cannot be run, whatever the program is: it is no Python, or a call cannot cross between processes."""


class End(enum.Enum):
    """How a program's run ended. All but `PASSED`, `EXITED` and `RETURNED` are ends of programs that failed."""

    PASSED = "passed"
    EXITED = "exited"
    """It ended by itself with exit code 0: whether what it printed is right, the caller says."""
    RETURNED = "returned"
    """The function that was called returned: whether what it returned is right, the caller says."""
    WRONG_ANSWER = "wrong_answer"
    RUNTIME_ERROR = "runtime_error"
    TIME_LIMIT = "time_limit"
    MEMORY_LIMIT = "memory_limit"
    OUTPUT_LIMIT = "output_limit"
    PROCESS_LIMIT = "process_limit"
    FILE_LIMIT = "file_limit"
    FORBIDDEN = "forbidden"
    NO_PROGRAM = "no_program"


@dataclass(frozen=True, slots=True)
class Limits:
    """What one run may use."""

    time_s: float
    """Seconds of processor time of a process. The kernel limits whole seconds, so it is rounded up."""
    memory_bytes: int
    """Address space of a process."""
    processes: int
    """Processes at once, itself included."""
    open_files: int
    output_bytes: int
    """Bytes that it may print, standard output and standard error together."""
    disk_bytes: int
    """Bytes that it may write to its folder."""

    @property
    def cpu_s(self) -> int:
        return math.ceil(self.time_s)

    @property
    def wall_s(self) -> float:
        """The limit by the clock: twice the processor time and one second. Waiting for a processor does not count."""
        return 2 * self.time_s + 1

    @property
    def most_starved_s(self) -> float:
        """The most seconds by which waiting for a processor may extend it."""
        return 3 * self.wall_s


@dataclass(frozen=True, slots=True)
class Plan:
    """What all runs of one runner have in common."""

    backend: str
    python: tuple[str, ...]
    """The command of the interpreter, with its options."""
    readable: tuple[str, ...]
    limits: Limits

    def dumps(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def loads(cls, text: str) -> Plan:
        plan = json.loads(text)
        limits = Limits(**plan["limits"])
        return cls(plan["backend"], tuple(plan["python"]), tuple(plan["readable"]), limits)


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a program: with a standard input, against a test, or with one call of a function of its own."""

    program: str
    stdin: str = ""
    test: str | None = None
    """Python that raises if the program is wrong."""
    call: str | None = None
    """The line that asks the program's process for a call (`calls.request`)."""
    before: str = ""
    """Python that is executed before the program, in its names; it may be incomplete. The stub that it completes."""
    common_names: bool = False
    """Whether a program that is called finds the names that LeetCode imports, and may recurse as deep as there."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended, what it printed (or the line that it answered a call with), and its last complaint."""

    end: End
    stdout: str = ""
    detail: str = ""


_COMPLAINTS = (
    (r"MemoryError|\[Errno 12\]", End.MEMORY_LIMIT),
    (r"can't start new thread|\[Errno 11\]", End.PROCESS_LIMIT),
    (r"\[Errno 24\]", End.FILE_LIMIT),
    (r"\[Errno (27|28|122)\]", End.OUTPUT_LIMIT),  # file too large, no space left, quota
    (r"PermissionError|\[Errno (1|13|30|97|99|101|111)\]", End.FORBIDDEN),  # read-only, no network
)
_SIGNALS: dict[int, End] = {
    signal.SIGXCPU: End.TIME_LIMIT,
    signal.SIGXFSZ: End.OUTPUT_LIMIT,
    signal.SIGSYS: End.FORBIDDEN,
}


def end_of(returncode: int, complaint: str, seconds: float, limits: Limits) -> End:
    """How a process ended that was not killed for a limit.

    `returncode` is negative for a signal, `complaint` is the last line of its standard error. In that a program may lie
    about the reason of its failure; it cannot turn a failure into a pass.
    """
    if returncode == 0:
        return End.EXITED
    if returncode < 0:
        if returncode == -signal.SIGKILL and seconds >= limits.cpu_s:
            return End.TIME_LIMIT  # it ignored SIGXCPU, and the hard limit followed
        return _SIGNALS.get(-returncode, End.RUNTIME_ERROR)
    return next((end for pattern, end in _COMPLAINTS if re.search(pattern, complaint)), End.RUNTIME_ERROR)


def last_line(text: str) -> str:
    """The last line that is not empty, at most 200 characters of it."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:200] if lines else ""


def outcome_of(answer: dict[str, Any]) -> Outcome:
    """The outcome that a runner answered. Raises the error that it reports instead."""
    if "failed" in answer:
        raise SandboxError(answer["failed"])
    if "unusable" in answer:
        raise UnusableTestError(_sendable(answer["unusable"]))
    return Outcome(End(answer["end"]), answer["stdout"], _sendable(answer["detail"]))


def _sendable(text: str) -> str:
    """Replaces lone surrogates, which a program may print and no message can carry."""
    return text.encode("utf-8", "replace").decode()
