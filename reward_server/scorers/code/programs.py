"""Which part of a completion is the program, and how it goes together with the code of a prompt.

Owns the reading of texts; nothing is run or compiled here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from reward_server.scorers.base import text_of

_FENCE = re.compile(r"(?P<indent>[ \t]*)(?P<fence>`{3,}|~{3,})[ \t]*\{?\.?(?P<language>[^\s`{}]*)[^`]*")
_PYTHON = ("python", "python3", "py")
_INDENT = 4
_CODE = re.compile(r"\s*(?:from|import|def|class|async|@|#|\"\"\"|''')")


@dataclass(frozen=True, slots=True)
class Program:
    """A program, and the code that is executed before it in the same names."""

    text: str
    before: str = ""


@dataclass(frozen=True, slots=True)
class _Block:
    language: str
    body: str
    is_closed: bool


def program_of(text: str, extract: str = "auto") -> str | None:
    """The program of a completion, None if there is none."""
    text = text.rpartition("</think>")[2]
    blocks = _blocks(text)
    program = _chosen(blocks)
    if program is not None:
        return program
    return None if extract == "fenced" or blocks or not text.strip() else text


def _chosen(blocks: Sequence[_Block]) -> str | None:
    """Tagged blocks before untagged ones, closed ones before one that was cut off, later ones before earlier ones."""
    for languages in (_PYTHON, ("",)):
        for is_closed in (True, False):
            bodies = [b.body for b in blocks if b.is_closed is is_closed and b.language.lower() in languages]
            if bodies:
                return bodies[-1]
    return None


def _blocks(text: str) -> list[_Block]:
    """The fenced blocks; the last may be cut off. Line by line: a search for ends would be quadratic."""
    blocks: list[_Block] = []
    opened: re.Match[str] | None = None
    body: list[str] = []
    for line in text.split("\n"):  # not splitlines: a form feed ends no line of Python
        if opened is None:
            opened, body = _FENCE.fullmatch(line), []
        elif line.strip() and set(line.strip()) == {opened["fence"][0]} and len(line.strip()) >= len(opened["fence"]):
            blocks.append(_Block(opened["language"], "\n".join(body) + "\n", is_closed=True))
            opened = None
        else:
            body.append(line.removeprefix(opened["indent"]))
    if opened is not None:
        blocks.append(_Block(opened["language"], "\n".join(body) + "\n", is_closed=False))
    return blocks


# ----------------------------------------------------------------------------------------------------- code of a prompt


def stub_of(prompt: Any, entry_point: str) -> str:
    """The code of a prompt (text or messages) that begins the function of that name; empty if it has none."""
    text = (
        prompt
        if isinstance(prompt, str)
        else "".join(text_of([{**message, "role": "assistant"}]) for message in prompt[-1:])
    )
    blocks = [block.body for block in _blocks(text) if block.language.lower() in ("", *_PYTHON)]
    candidates = [*reversed(blocks), *([text] if _CODE.match(text) and not blocks else [])]
    return next((code for code in candidates if _defines(code, entry_point)), "")


def completed(program: str, stub: str, entry_point: str) -> Program:
    """A program with the code that it completes.

    Where the program defines the function itself, the stub is only executed before, for its imports and helpers.
    Otherwise it is the rest of the stub.
    """
    if not stub:
        return Program(program)
    if _defines(program, entry_point):
        return Program(program, before=stub)
    return Program(f"{stub.rstrip()}\n{_indented(program)}\n")


def _defines(code: str, name: str) -> bool:
    by = (r"(?:async[ \t]+)?def[ \t]+NAME\b", r"class[ \t]+NAME\b", r"NAME[ \t]*=", r"(?:from|import)\b.*\bNAME\b")
    return re.search(rf"^(?:{'|'.join(by)})".replace("NAME", name), code, re.MULTILINE) is not None


def _indented(body: str) -> str:
    """The body of a function, up to the first line that is no part of it.

    Models and their post-processing take away the indentation of all lines, or of the first one alone.
    """
    lines = body.strip("\n").split("\n")
    first, *rest = lines
    if _depth(first) == 0:
        depths = [_depth(line) for line in rest if line.strip()]
        opens_a_block = first.rstrip().endswith(":")
        if all(depths) and not (opens_a_block and depths and depths[0] < 2 * _INDENT):
            lines[0] = " " * _INDENT + first
        else:
            return "\n".join(" " * _INDENT + line for line in lines)
    end = next((n for n, line in enumerate(lines) if line.strip() and _depth(line) == 0), len(lines))
    return "\n".join(lines[:end])


def _depth(line: str) -> int:
    return len(line.expandtabs()) - len(line.expandtabs().lstrip())
