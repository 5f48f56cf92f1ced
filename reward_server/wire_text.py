"""Groups whose completions are plain text, as most are, from their bytes in one pass, without messages in between.

Owns the fields of ScoreGroupRequest as they are serialised. It takes what every protobuf library writes for such a
group: the fields in ascending order, each once. Anything else is left to `wire`, which knows the whole format.

Legend: G completions of a group.
"""

from __future__ import annotations

import functools

from reward_server.types import WIRE_VERSION, Completion, Group
from reward_server.wire_json import load_object

# Tags: the number of a field and how it is written.
_VERSION, _RUN_ID, _STEP, _GROUP_ID, _PROMPT, _COMPLETION, _COLUMNS = 0x08, 0x12, 0x18, 0x22, 0x2A, 0x32, 0x3A
_CONTENT, _TEXT = b"\x0a", b"\x0a"
_NEVER = b"\xff"  # no field begins with it


def text_group(data: bytes) -> Group | None:
    """The group of a serialised request; None unless prompt and completions are text and nothing else.

    Raises InvalidGroupError for columns that are no JSON object.
    """
    try:
        return _group(data)
    except (IndexError, UnicodeDecodeError):  # it ends too early, or is no text
        return None


def _group(data: bytes) -> Group | None:
    if data[0] != _VERSION or data[1] != WIRE_VERSION:
        return None
    at, run_id, step, group_id = 2, "", 0, ""
    if data[at] == _RUN_ID:
        run_id, at = _string(data, at + 1)
    if data[at] == _STEP:
        step, at = _varint(data, at + 1)
    if data[at] == _GROUP_ID:
        group_id, at = _string(data, at + 1)
    if data[at] != _PROMPT:
        return None
    length, at = _varint(data, at + 1)
    head = _head_of_content(length)
    if not data.startswith(head, at):
        return None
    prompt = data[at + len(head) : at + length].decode()
    completions, at = _completions(data, at + length)
    columns_json = ""
    if at < len(data) and data[at] == _COLUMNS:
        columns_json, at = _string(data, at + 1)
    if not completions or at != len(data):
        return None
    return Group(prompt, completions, load_object(columns_json, "columns_json"), run_id, step, group_id)


def _completions(data: bytes, at: int) -> tuple[tuple[Completion, ...], int]:
    """The completions from there on that are text, and where they end."""
    found, end = [], len(data)
    while at < end and data[at] == _COMPLETION:
        length, start = _varint(data, at + 1)
        head = _head_of_completion(length)
        if not data.startswith(head, start):
            break
        at = start + length
        found.append(Completion(data[start + len(head) : at].decode(), None, {}))
    return tuple(found), at


def _string(data: bytes, at: int) -> tuple[str, int]:
    length, at = _varint(data, at)
    return data[at : at + length].decode(), at + length


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number of up to three bytes, and where it ends. Raises IndexError for longer ones."""
    number = data[at]
    if number < 128:
        return number, at + 1
    number += (data[at + 1] - 1) << 7
    if data[at + 1] < 128:
        return number, at + 2
    number += (data[at + 2] - 1) << 14
    if data[at + 2] < 128:
        return number, at + 3
    raise IndexError


@functools.lru_cache(maxsize=1 << 14)
def _head_of_completion(length: int) -> bytes:
    """What a completion of so many bytes begins with if it is a text and nothing else."""
    inner = _inner(length)
    return _NEVER if inner is None else _CONTENT + _digits(inner) + _head_of_content(inner)


@functools.lru_cache(maxsize=1 << 14)
def _head_of_content(length: int) -> bytes:
    inner = _inner(length)
    return _NEVER if inner is None else _TEXT + _digits(inner)


def _inner(length: int) -> int | None:
    """The length of a field that fills so many bytes with its tag and its own length."""
    possible = (length - 1 - digits for digits in (1, 2, 3) if length > digits)
    return next((inner for inner in possible if length == 1 + len(_digits(inner)) + inner), None)


def _digits(number: int) -> bytes:
    """A number as a varint."""
    digits = []
    while number > 127:
        digits.append(number & 127 | 128)
        number >>= 7
    return bytes([*digits, number])
