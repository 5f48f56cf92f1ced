"""The program's side of a test that calls it: imports the program, then answers requests, a line each.

Owns the objects of the program's that a test holds, and the finding of the function under test. The program's process
learns nothing of a test but the arguments of the calls. What it answers are plain values; whatever else it writes there
counts as an answer, too, and can only be a wrong one.
"""

from __future__ import annotations

import posix
import sys

from reward_server.sandbox.inside import common, plain
from reward_server.sandbox.inside.program import add_depth, add_what_site_adds, execute, start

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


def main() -> None:
    """Serves the program whose request is on standard input. Its third text is not empty if it gets common names."""
    before, program, with_common_names = start()
    requests, answers = open(posix.dup(0), "rb"), open(posix.dup(1), "wb")  # noqa: SIM115
    posix.dup2(posix.open("/dev/null", posix.O_RDONLY), 0)
    posix.dup2(2, 1)  # what the program prints is no answer
    sys.argv = ["program.py"]
    add_what_site_adds()
    add_depth(common.DEPTH if with_common_names else 1)
    module = sys.modules["program"] = type(sys)("program")
    module.__file__ = "program.py"
    if with_common_names:
        common.add_common_names(program)
    execute(before, program, module.__dict__)
    desk = Desk(module)
    for line in requests:
        answers.write(desk.answer(line))
        answers.flush()
    posix._exit(0)


class Desk:
    """Answers requests; keeps the objects of the program's that a test holds. Number 0 is the program itself."""

    def __init__(self, module: Any):
        self._kept = [module]
        self._numbers = {id(module): 0}

    def answer(self, line: bytes) -> bytes:
        """`["value", what came of it]`, or `["raised", the names of the error's classes, its text]`."""
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


def find(module: Any, name: str) -> Any:
    """The function of a name: the program's own, or a method of its class `Solution`, as LeetCode has it."""
    if hasattr(module, name):
        return getattr(module, name)
    if hasattr(module, "Solution") and hasattr(module.Solution, name):
        return getattr(module.Solution(), name)
    raise NameError(f"name {name!r} is not defined")


_OPERATIONS: dict[str, Callable[..., Any]] = {
    "call": lambda target, args, kwargs: target(*args, **kwargs),
    "call_named": lambda target, name, args: find(target, name)(*args),
    "find": find,
    "get": getattr,
    "set": setattr,
    "item": lambda target, key: target[key],
    "set_item": lambda target, key, value: target.__setitem__(key, value),
    "iter": iter,
    "next": next,
    "len": len,
    "bool": bool,
    "str": str,
}
