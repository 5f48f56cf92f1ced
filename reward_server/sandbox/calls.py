"""A call of a program's function by name: the line that asks for it, and whether the answer is the expected value.

Owns the comparison of values. It walks the expected value and looks for each part in the answer's JSON, so that nothing
is built of what a program sent: no object, no number of a thousand digits, no dictionary of colliding keys. The
expected value stays in this process.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from reward_server.sandbox.inside import plain

_PROGRAM = object()
_FRACTION = re.compile(r"(-?\d{1,300})(?:/(\d{1,300}))?")

Close = Callable[[float, float], bool]
"""Whether an answered and an expected number are the same, of which one is a float."""


def request(name: str, arguments: Sequence[Any]) -> str:
    """The line that asks for a call of a function, or of a method of `Solution`. Arguments are values of JSON.

    Raises ValueError for values that are nested too deep.
    """
    try:
        return plain.dumps(["call_named", _PROGRAM, name, list(arguments)], _number_of).decode().rstrip("\n")
    except RecursionError:
        raise ValueError("is nested too deep") from None


def is_equal(answer: str, expected: Any, close: Close) -> bool:
    """Whether a function returned this value of JSON, by the line that its process answered.

    As Python's `==`, but: tuples are equal to lists, the keys of a dictionary are compared as JSON writes them, two NaN
    are equal, and `close` compares floats.
    """
    try:
        kind, value = json.loads(answer)
        return kind == "value" and _is_equal(value, expected, close)
    except (ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RecursionError):  # no answer of ours
        return False


def _number_of(value: Any) -> int:
    """The number that the program has in its own process."""
    if value is not _PROGRAM:
        raise ValueError(f"holds a {type(value).__name__}")
    return 0


def _is_equal(value: Any, expected: Any, close: Close) -> bool:
    if isinstance(expected, Mapping):
        return _are_equal_items(value, expected, close)
    if isinstance(expected, (list, tuple)):
        items = value["tuple"] if isinstance(value, dict) else value
        return (
            isinstance(items, list)
            and len(items) == len(expected)
            and all(_is_equal(item, part, close) for item, part in zip(items, expected, strict=True))
        )
    if isinstance(expected, (int, float)):
        number = _number(value)
        if isinstance(number, int) and isinstance(expected, int):
            return number == expected
        return close(float(number), float(expected)) or (math.isnan(number) and math.isnan(expected))
    return type(value) is type(expected) and value == expected  # text and None


def _are_equal_items(value: Any, expected: Mapping[str, Any], close: Close) -> bool:
    pairs = value["dict"]
    items = {_key(key): item for key, item in pairs}
    return (
        len(pairs) == len(items) == len(expected)
        and all(key in items for key in expected)
        and all(_is_equal(items[key], part, close) for key, part in expected.items())
    )


def _key(key: Any) -> str:
    """A key as `json.dumps` writes it."""
    return key if isinstance(key, str) else json.dumps(None if key is None else _number(key))


def _number(value: Any) -> int | float:
    """The number of an encoded one. Raises for all else."""
    if isinstance(value, (int, float)):
        return value
    ((kind, text),) = value.items()
    if kind == "int":
        return int(text, 16)  # in proportion to its length
    if kind in ("float", "Decimal"):
        return float(text)
    match = _FRACTION.fullmatch(text) if kind == "Fraction" else None
    if match is None:
        raise ValueError(kind)
    return int(match[1]) / int(match[2] or 1)
