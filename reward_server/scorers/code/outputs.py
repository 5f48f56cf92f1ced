"""Which outputs and which numbers are the same.

Owns the comparison of texts. It takes time in proportion to the expected text, whatever a program printed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable

from reward_server.scorers.code.options import CodeOptions

_INTEGER = re.compile(r"[+-]?\d{1,4000}", re.ASCII)
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?|[+-]?(?:inf|infinity|nan)", re.ASCII | re.IGNORECASE)


def same_output(printed: str, expected: str, options: CodeOptions) -> bool:
    """Whether a program printed what is expected, by the option `compare`."""
    if printed == expected:
        return True
    match options.compare:
        case "exact":
            return False
        case "tokens":
            return printed.split() == expected.split()
        case "float":
            return _same_tokens(printed.split(), expected.split(), closeness(options))
        case "unordered":
            return sorted(_lines(printed)) == sorted(_lines(expected))
        case _:
            return _lines(printed) == _lines(expected)


def closeness(options: CodeOptions) -> Callable[[float, float], bool]:
    """Whether a number is as close to the expected one as the options ask."""

    def is_close(number: float, expected: float) -> bool:
        if number == expected or options.compare == "exact":
            return number == expected
        if not (math.isfinite(number) and math.isfinite(expected)):
            return False
        return abs(number - expected) <= max(options.rtol * abs(expected), options.atol)

    return is_close


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().splitlines()]


def _same_tokens(printed: list[str], expected: list[str], is_close: Callable[[float, float], bool]) -> bool:
    return len(printed) == len(expected) and all(
        token == wanted or _same_numbers(token, wanted, is_close)
        for token, wanted in zip(printed, expected, strict=True)
    )


def _same_numbers(token: str, wanted: str, is_close: Callable[[float, float], bool]) -> bool:
    if _INTEGER.fullmatch(token) and _INTEGER.fullmatch(wanted):
        return int(token) == int(wanted)
    if not (_NUMBER.fullmatch(token) and _NUMBER.fullmatch(wanted)):
        return False
    return is_close(float(token), float(wanted))
