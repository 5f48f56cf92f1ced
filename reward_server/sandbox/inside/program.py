"""The program's side: limits itself, says that it is up, then is the program.

Standard input holds a line of numbers, the program's text, and behind it the program's own standard input. The first
byte on standard output says that the sandbox stands: whatever ends before it is no fault of the program's.

With tests (`serve`), the program is imported rather than run, and a line of standard input asks for a call. It learns
nothing of a test but the arguments of the calls; what it answers are plain values, and whatever else it may write or do
is one more answer.
"""

from __future__ import annotations

import os
import resource
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

READY = b"\x06"


def main() -> None:
    serve, program = start()
    if serve:
        serve_calls(program)
    else:
        sys.argv = ["program.py"]
        exec(compile(program, "program.py", "exec", dont_inherit=True), sys.modules["__main__"].__dict__)


def start() -> tuple[bool, str]:
    """Reads what is asked for, sets the limits. Returns whether to serve calls, and the program's text."""
    header = b""
    while not header.endswith(b"\n"):
        header += os.read(0, 1) or b"\n"
    serve, cpu_s, memory_bytes, disk_bytes, open_files, processes, size = map(int, header.split())
    text = b""
    while len(text) < size:
        text += os.read(0, size - len(text))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (disk_bytes, disk_bytes))
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_files, open_files))
    if processes:
        resource.setrlimit(resource.RLIMIT_NPROC, (processes, processes))
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    os.write(1, READY)
    return bool(serve), text.decode("utf-8", "surrogatepass")


def serve_calls(program: str) -> None:
    """Imports the program and answers calls until there are no more."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
    os.dup2(2, 1)  # what it prints is nobody's answer
    module = type(sys)("program")
    sys.modules["program"] = module
    exec(compile(program, "program.py", "exec", dont_inherit=True), module.__dict__)
    desk = Desk(module)
    for line in requests:
        answers.write(desk.answer(line))
        answers.flush()
    os._exit(0)


class Desk:
    """Answers requests; keeps the objects of the program's that a test holds. Number 0 is the program itself."""

    def __init__(self, module: Any):
        self._kept = [module]
        self._numbers = {id(module): 0}

    def answer(self, line: bytes) -> bytes:
        from reward_server.sandbox.inside import plain  # noqa: PLC0415 - a program that is only run does without

        try:
            operation, target, *rest = plain.loads(line, lambda number, _: self._kept[number])
            return plain.dumps(["value", _OPERATIONS[operation](target, *rest)], self._keep)
        except BaseException as error:
            names = [kind.__name__ for kind in type(error).__mro__]
            return plain.dumps(["raised", names, str(error)[:500]], self._keep)

    def _keep(self, value: Any) -> int:
        if id(value) not in self._numbers:
            self._numbers[id(value)] = len(self._kept)
            self._kept.append(value)
        return self._numbers[id(value)]


_OPERATIONS: dict[str, Callable[..., Any]] = {
    "call": lambda target, args, kwargs: target(*args, **kwargs),
    "get": getattr,
    "item": lambda target, key: target[key],
    "iter": iter,
    "next": next,
    "len": len,
    "bool": bool,
    "str": str,
}
