"""The tests' side: a host that runs each test in a process of its own, forked from it, and says how that ended.

Owns the life of a test and its verdict. Starting an interpreter takes longer than most tests, so the host is started
once. It never reads what comes from a program: each test talks to its program through two named pipes of its own, in
the folder where it runs. The host is told over standard input, which only the runner writes to.

    the host    -> a line (number, seconds of processor, size) and the text   <- P and a process id, E and its exit code
    the test    -> an answer of the program's, for each request               <- C and a request, or V and the verdict
"""

from __future__ import annotations

import posix

from reward_server.sandbox.inside.program import READY, limit_cpu, read, start
from reward_server.sandbox.inside.remote import Line, Names, Unusable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def main() -> None:
    start()
    while request := _line():
        number, cpu_s, size = map(int, request.split())
        test = read(size).decode("utf-8", "surrogatepass")
        child = posix.fork()
        if child == 0:
            limit_cpu(cpu_s)
            _run(number, test)
        posix.write(1, b"P%d\n" % child)
        _, status = posix.waitpid(child, 0)
        posix.write(1, b"E%d\n" % posix.waitstatus_to_exitcode(status))
    posix._exit(0)


def _line() -> bytes:
    line = b""
    while not line.endswith(b"\n") and (piece := posix.read(0, 1)):
        line += piece
    return line


def _run(number: int, test: str) -> None:
    """Runs a test in this process, tells the verdict and ends the process."""
    answers = posix.open(f"in-{number}", posix.O_RDONLY)
    requests = posix.open(f"out-{number}", posix.O_WRONLY)
    posix.dup2(posix.open("/dev/null", posix.O_RDONLY), 0)
    posix.dup2(2, 1)  # what a test prints is neither a verdict nor the host's word
    posix.write(requests, READY)
    line = Line(answers, requests)
    verdict = _verdict(test, line)
    line.tell(**verdict, **({"ended": True} if line.ended else {}))
    posix._exit(0)


def _verdict(test: str, line: Line) -> dict[str, Any]:
    try:
        code = compile(test, "test.py", "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:
        return {"unusable": f"the test is no Python: {error}"}
    try:
        exec(code, Names(line))
        return {"passed": not line.ended}
    except Unusable as error:
        return {"unusable": str(error)}
    except BaseException as error:
        if isinstance(error, ImportError) and not hasattr(error, "is_of_program"):
            return {"unusable": f"the test cannot import what it needs: {_one_line(error)}"}
        return {"passed": False, "is_assert": isinstance(error, AssertionError), "detail": _one_line(error)}


def _one_line(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"[:200]
    except BaseException:
        return type(error).__name__
