"""A program that lives in another process, as a test sees it.

Owns the way there and back, and what stands for the program's names and objects. The names that a test neither defines
nor imports, and that are neither Python's nor the standard library's, are the program's: calling one asks the program's
process, which gets copies of the arguments. Answers are plain values (`plain`) and are compared in this process, where
nothing of the program's runs. An object of the program's own is a `Remote`: a test may call it, index it, loop over it,
and read and set its attributes, but it is equal to nothing but itself.
"""

from __future__ import annotations

import builtins
import sys

from reward_server.sandbox.inside import plain

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any


class ProgramEnded(BaseException):
    """The program's process ended while it was asked."""


class Unusable(BaseException):
    """The test asks for what cannot be done, whatever the program is."""


class Line:
    """The way to the program's process and back: requests go out marked C, the verdict marked V."""

    def __init__(self, answers: int, requests: int) -> None:
        self._answers, self._requests = open(answers, "rb"), open(requests, "wb")  # noqa: SIM115
        self.ended = False

    def ask(self, operation: str, target: int, *rest: Any) -> Any:
        """What the program answers. Raises what it raised, as the nearest of Python's own exceptions."""
        body = plain.dumps([operation, _Number(target), *rest], self._number)
        self._send(b"C", body)
        answer = self._answers.readline()
        if not answer.endswith(b"\n"):
            self.ended = True
            raise ProgramEnded
        kind, *value = _unreadable_is_none(answer, self._remote) or ("raised", ["ValueError"], "an unreadable answer")
        if kind == "value":
            return value[0]
        error = _exception(*value)
        if isinstance(error, StopIteration) and operation != "next":
            # Else `all(map(function, cases))` would take it for the end of the cases, and for a pass.
            error = RuntimeError(f"StopIteration: {error}")
        error.is_of_program = True  # type: ignore[attr-defined]
        raise error

    def tell(self, **verdict: Any) -> None:
        self._send(b"V", plain.to_json(verdict).encode() + b"\n")

    def _send(self, mark: bytes, body: bytes) -> None:
        self._requests.write(mark + body)
        self._requests.flush()

    def _remote(self, number: int, kind: str) -> Remote:
        return Remote(self, int(number), str(kind))

    @staticmethod
    def _number(value: Any) -> int:
        if isinstance(value, _Number):
            return value.number
        if isinstance(value, Remote):
            return object.__getattribute__(value, "_number")
        raise Unusable(f"a test cannot hand a {type(value).__name__} to the program, only plain values")


class _Number:
    def __init__(self, number: int):
        self.number = number


class Remote:
    """An object in the program's process."""

    __slots__ = ("_kind", "_line", "_number")

    def __init__(self, line: Line, number: int, kind: str):
        for name, value in (("_line", line), ("_number", number), ("_kind", kind)):
            object.__setattr__(self, name, value)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._line.ask("call", self._number, list(args), kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._line.ask("get", self._number, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._line.ask("set", self._number, name, value)

    def __getitem__(self, key: Any) -> Any:
        return self._line.ask("item", self._number, key)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._line.ask("set_item", self._number, key, value)

    def __iter__(self) -> Iterator[Any]:
        return self._line.ask("iter", self._number)

    def __next__(self) -> Any:
        return self._line.ask("next", self._number)

    def __len__(self) -> int:
        return self._line.ask("len", self._number)

    def __bool__(self) -> bool:
        return self._line.ask("bool", self._number) is True

    def __str__(self) -> str:
        return self._line.ask("str", self._number)

    def __repr__(self) -> str:
        return f"<{self._kind} of the program>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Remote) and other._number == self._number

    def __hash__(self) -> int:
        return hash(self._number)


class Names(dict):
    """A test's names. What is missing is looked up in the program, unless Python or its library has it."""

    def __init__(self, line: Line):
        super().__init__(
            __name__="test",
            __builtins__=builtins,
            __program__=Remote(line, 0, "program"),
            __find__=lambda name: line.ask("find", 0, name),  # the function under test, or a method of `Solution`
        )
        self._line = line

    def __missing__(self, name: str) -> Any:
        if name.startswith("__") or hasattr(builtins, name):
            raise KeyError(name)
        if name in sys.stdlib_module_names:
            return __import__(name)
        try:
            return self._line.ask("get", 0, name)
        except AttributeError:
            raise KeyError(name) from None


def _unreadable_is_none(answer: bytes, take: Any) -> Any:
    try:
        kind, *value = plain.loads(answer, take)
        return (kind, *value) if (kind, len(value)) in (("value", 1), ("raised", 2)) else None
    except Exception:  # whatever a program may have written there
        return None


def _exception(names: list[str], message: str) -> Exception:
    """An exception of Python's own: of the program's classes the nearest base. What would end a process is no such."""
    kinds = [getattr(builtins, str(name), None) for name in names]
    for kind in kinds:
        if isinstance(kind, type) and issubclass(kind, Exception):
            try:
                return kind(message)
            except TypeError:  # UnicodeDecodeError asks for more
                continue
    return RuntimeError(f"{names[0] if names else 'error'}: {message}")
