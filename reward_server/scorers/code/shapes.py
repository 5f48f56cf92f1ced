"""Which values of a column are which tests: one shape a family of data sets.

Owns the reading of values, and the refusal of those that it does not understand: a wrong reading would be worth a wrong
0 to every right program. Nothing is run, and nothing is unpickled.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from reward_server.sandbox import calls

KNOWN = (
    'known are {"inputs": [...], "outputs": [...]} with or without "fn_name", {"input": [...], "output": [...]}, '
    '[{"input": ..., "output": ..., "testtype": "stdin" or "functional"}, ...], and Python that asserts, as text or a '
    "list of texts"
)
_STDIN = ("stdin", "stdin_stdout", "stdio")
_FUNCTIONAL = ("functional", "function_call", "call_based")
_PARALLEL = (("inputs", "outputs"), ("input", "output"))
_NAME_KEYS = ("fn_name", "func_name", "entry_point")
_PICKLE = (b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_ENTRY_POINT = re.compile(r"(?:Solution(?:\(\))?\.)?([^\W\d]\w*)")


class ShapeError(ValueError):
    """A value that is no tests, or whose tests are not understood. The message says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class CodeTest:
    """One test of one of three kinds: an input and what is to be printed, a call and its value, or Python."""

    stdin: str = ""
    output: str | None = None
    code: str | None = None
    call: str | None = None
    """The line that asks for the call (`calls.request`)."""
    values: tuple[Any, ...] = ()
    """What the function may return, each a value of JSON."""


def read_tests(value: Any, name: str | None = None, setup: Any = None) -> list[CodeTest]:
    """The tests of a column's value, none for an empty one. Raises ShapeError.

    `name` is the function under test, where a column or an option says it; `setup` Python that goes before asserts.
    """
    value = _from_json(value)
    if value is None or (isinstance(value, (str, list, dict)) and not value):
        return []
    if isinstance(value, str):
        return [_asserting(value, name, setup)] if value.strip() else []
    if isinstance(value, Mapping):
        return _of_mapping(value, name)
    if isinstance(value, Sequence) and all(isinstance(each, str) for each in value):
        return [_asserting(each, name, setup) for each in value]
    if isinstance(value, Sequence) and all(isinstance(each, Mapping) for each in value):
        return _of_cases(value, name)
    raise _unknown(value)


def entry_point_of(value: Any) -> str | None:
    """The name of the function under test, as a column has it. None if it has none. Raises ShapeError."""
    value = _from_json(value)
    if isinstance(value, Mapping):
        value = next((value[key] for key in _NAME_KEYS if value.get(key)), None)
    if value is None or value == "":
        return None
    match = _ENTRY_POINT.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ShapeError(f"holds {_shown(value)}, which is no name of a function")
    return match[1]


def _from_json(value: Any) -> Any:
    """What a text of JSON stands for, twice encoded ones too; other texts as they are, since Python may begin so."""
    for _ in range(2):
        if isinstance(value, str) and value.lstrip()[:1] in ("{", "[", '"'):
            with contextlib.suppress(ValueError, RecursionError):
                value = json.loads(value, parse_int=_integer)
    return value


def _integer(digits: str) -> int:
    """`int` refuses more than 4300 digits, which some tests of APPS have."""
    return int(digits) if len(digits) < 4300 else int(Decimal(digits))


# ------------------------------------------------------------------------------------------------ inputs and outputs


def _of_mapping(value: Mapping[str, Any], name: str | None) -> list[CodeTest]:
    """Parallel lists, one case, or cases with their language (verifiable-coding-problems)."""
    given = {key: item for key, item in value.items() if item is not None}  # Arrow fills in what a row lacks
    if "test_cases" in given:
        language = str(given.pop("language", "python")).lower()
        if set(given) != {"test_cases"} or language not in ("python", "python3", "py"):
            raise _unknown(value)
        return read_tests(given["test_cases"], name)
    for names in _PARALLEL:
        if set(names) <= set(given) and all(_is_list(given[each]) for each in names):
            return _of_lists(value, given, names, name)
    return _of_cases([value], name)


def _of_lists(
    value: Mapping[str, Any], given: Mapping[str, Any], names: Sequence[str], name: str | None
) -> list[CodeTest]:
    if set(given) - {*names, "fn_name"}:
        raise _unknown(value)
    inputs, outputs = given[names[0]], given[names[1]]
    if len(inputs) != len(outputs):
        raise ShapeError(
            f"holds {_shown(value)}, whose {names[0]} ({len(inputs)}) and {names[1]} ({len(outputs)}) differ in number"
        )
    function = entry_point_of(given.get("fn_name")) or name
    if function is None:
        return [CodeTest(_text(each), _text(output)) for each, output in zip(inputs, outputs, strict=True)]
    return _calls(function, list(zip(inputs, outputs, strict=True)))


def _of_cases(cases: Sequence[Mapping[str, Any]], name: str | None) -> list[CodeTest]:
    """One mapping a test. Those of one function are read together: the shape of one says how to read the others."""
    tests: list[CodeTest] = []
    called: dict[str, list[tuple[Any, Any]]] = {}
    for case in cases:
        given = {key: item for key, item in case.items() if item is not None}
        kind = str(given.pop("testtype", given.pop("type", "")))
        function = entry_point_of(given.pop("fn_name", None)) or entry_point_of(given.pop("metadata", None)) or name
        if set(given) != {"input", "output"} or kind not in ("", *_STDIN, *_FUNCTIONAL):
            raise _unknown(case)
        if kind in _STDIN or (not kind and function is None):
            tests.append(CodeTest(_text(given["input"]), _text(given["output"])))
        elif function is None:
            raise ShapeError(
                f"holds {_shown(case)}, a call of a function without its name: set entry_point_column to the column "
                "that has it (LiveCodeBench's metadata), or entry_point"
            )
        else:
            called.setdefault(function, []).append((given["input"], given["output"]))
    return tests + [test for function, pairs in called.items() for test in _calls(function, pairs)]


def _calls(function: str, pairs: Sequence[tuple[Any, Any]]) -> list[CodeTest]:
    """Tests that call a function: with lists of arguments (APPS, TACO, prime), or with text (LiveCodeBench)."""
    are_wrapped = all(_is_list(arguments) and _is_list(output) and len(output) == 1 for arguments, output in pairs)
    return [_call(function, arguments, output, are_wrapped) for arguments, output in pairs]


def _call(function: str, arguments: Any, output: Any, is_wrapped: bool) -> CodeTest:
    if isinstance(arguments, str):
        arguments = [_json_of(line) for line in arguments.split("\n") if line.strip()]
        output = _json_of(output) if isinstance(output, str) else output
    elif _is_list(arguments):
        arguments = [_with_integer_keys(argument) for argument in arguments]
    else:
        raise ShapeError(
            f"holds the input {_shown(arguments)} of {function!r}, which is neither a list of arguments nor text with "
            "one JSON value a line"
        )
    values = (output, output[0]) if is_wrapped else (output,)
    try:
        return CodeTest(call=calls.request(function, arguments), values=values)
    except ValueError as error:
        raise ShapeError(f"holds an input of {function!r} that {error}") from None


def _json_of(text: str) -> Any:
    try:
        return json.loads(text, parse_int=_integer)
    except (ValueError, RecursionError):
        raise ShapeError(f"holds {_shown(text)} for a call of a function, which is not JSON") from None


def _with_integer_keys(value: Any) -> Any:
    """JSON has no integer keys: where all keys of an object are integers, they were (APPS, testing_util.py)."""
    if isinstance(value, Mapping):
        are_integers = bool(value) and all(re.fullmatch(r"-?\d{1,18}", key) for key in value)
        return {int(key) if are_integers else key: _with_integer_keys(item) for key, item in value.items()}
    return [_with_integer_keys(item) for item in value] if _is_list(value) else value


def _text(value: Any) -> str:
    """An input or output of a script: text, a number, or a list of lines of those."""
    lines = value if _is_list(value) else [value]
    if not all(isinstance(line, (str, int, float)) for line in lines):
        raise ShapeError(f"holds the input or output {_shown(value)}, which is neither text nor a list of lines")
    return "\n".join(map(str, lines))


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple))


# --------------------------------------------------------------------------------------------------------------- Python


def _asserting(text: str, name: str | None, setup: Any) -> CodeTest:
    """Python that raises if the program is wrong. A test that defines `check` is asked to check the function."""
    if _is_pickled(text):
        raise ShapeError(
            f"holds {_shown(text)}, a compressed pickle (LiveCodeBench's private_test_cases), and nothing is unpickled "
            "here. Convert the data set where you trust it: json.loads(pickle.loads(zlib.decompress(base64.b64decode("
            "text)))) is the list of tests"
        )
    if not re.search(r"\bassert\b|\braise\b|\w[ \t]*\(", text):
        raise _unknown(text)
    if re.search(r"^def check\b", text, re.MULTILINE) and not re.search(r"^check[ \t]*\(", text, re.MULTILINE):
        if name is None:
            raise ShapeError(
                f"holds {_shown(text)}, which defines check and does not call it: set entry_point_column to the column "
                "with the name of the function (HumanEval's entry_point), or entry_point"
            )
        text = f"{text}\n\ncheck(__find__({name!r}))\n"
    return CodeTest(code="\n".join([*_setup(setup), text]))


def _setup(value: Any) -> Iterable[str]:
    value = _from_json(value)
    texts = value if _is_list(value) else [value] if value else []
    if not all(isinstance(text, str) for text in texts):
        raise ShapeError(f"holds {_shown(value)} to put before the tests, which is neither text nor a list of texts")
    return texts


def _is_pickled(text: str) -> bool:
    if len(text) < 16 or not re.fullmatch(r"[A-Za-z0-9+/=\s]+", text[:64]):
        return False
    try:
        return base64.b64decode(text[:64].strip()[:16], validate=True).startswith(_PICKLE)
    except binascii.Error:
        return False


# ------------------------------------------------------------------------------------------------------------- messages


def _unknown(value: Any) -> ShapeError:
    return ShapeError(f"holds {_shown(value)}, which is no shape of tests that is known; {KNOWN}")


def _shown(value: Any) -> str:
    try:
        text = repr(dict(value) if isinstance(value, Mapping) else value)
    except (ValueError, RecursionError):  # numbers of too many digits
        return f"a {type(value).__name__}"
    return text if len(text) <= 120 else f"{text[:117]}..."
