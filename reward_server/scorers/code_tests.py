"""What of a completion is the program, what of a column the tests, and which outputs are the same.

Owns the reading of texts and values; nothing is run. The rules are in the docstring of `code`, whose part this is.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_FENCE = re.compile(r"(?P<indent>[ \t]*)(?P<fence>`{3,}|~{3,})[ \t]*(?P<language>[^\s`{]*)[^`]*")
_LANGUAGES = ("", "python", "python3", "py")


@dataclass(frozen=True, slots=True)
class CodeTest:
    """One test: a standard input and what is to be printed, or Python."""

    stdin: str = ""
    output: str | None = None
    code: str | None = None


def program_of(text: str, extract: str = "auto") -> str | None:
    """The program of a completion, None if there is none."""
    text = text.rpartition("</think>")[2]
    blocks = [body for language, body in _blocks(text) if language.lower() in _LANGUAGES]
    if blocks:
        return blocks[-1]
    has_fence = any(_FENCE.fullmatch(line) for line in text.split("\n"))
    return None if extract == "fenced" or has_fence or not text.strip() else text


def _blocks(text: str) -> Iterator[tuple[str, str]]:
    """Language and body of each closed fenced block. Line by line: a search for ends would be quadratic."""
    opened: re.Match[str] | None = None
    body: list[str] = []
    for line in text.split("\n"):  # not splitlines: a form feed ends no line of Python
        if opened is None:
            opened, body = _FENCE.fullmatch(line), []
        elif line.strip() and set(line.strip()) == {opened["fence"][0]} and len(line.strip()) >= len(opened["fence"]):
            yield opened["language"], "\n".join(body) + "\n"
            opened = None
        else:
            body.append(line.removeprefix(opened["indent"]))


def read_tests(value: Any) -> list[CodeTest] | str:
    """The tests of a column's value, none for an empty one; text that says what is wrong with it."""
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        with contextlib.suppress(ValueError, RecursionError):  # Python may begin so, too
            value = json.loads(value)
    if isinstance(value, str):
        return [CodeTest(code=value)] if value.strip() else []
    if isinstance(value, Mapping):
        return _of_columns(value)
    if value is None or value == []:
        return []
    if isinstance(value, Sequence):
        if all(isinstance(each, str) for each in value):
            return [CodeTest(code=each) for each in value]
        if all(isinstance(each, Mapping) and {"input", "output"} <= set(each) for each in value):
            return [CodeTest(_text(each["input"]), _text(each["output"])) for each in value]
    return f"holds {value!r:.80}, which is neither inputs and outputs nor Python that asserts"


def _of_columns(value: Mapping[str, Any]) -> list[CodeTest] | str:
    inputs, outputs = value.get("inputs"), value.get("outputs")
    if not isinstance(inputs, Sequence) or not isinstance(outputs, Sequence) or len(inputs) != len(outputs):
        return f"holds {dict(value)!r:.80}, which has no lists `inputs` and `outputs` of one length"
    return [CodeTest(_text(each), _text(output)) for each, output in zip(inputs, outputs, strict=True)]


def _text(value: Any) -> str:
    """APPS and others write a text or the list of its lines."""
    return "\n".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def normal(text: str, compare: str) -> Any:
    """A text as far as it counts in a comparison (`lines`, `tokens`, `exact`)."""
    if compare == "tokens":
        return text.split()
    if compare == "exact":
        return text
    return [line.rstrip() for line in text.rstrip().splitlines()]
