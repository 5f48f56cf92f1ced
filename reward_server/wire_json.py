"""JSON as it travels in messages: columns, chat messages and extra columns.

Owns the two directions and their errors. Integers of any size, nested lists, Unicode and null arrive as they were; NaN
and infinity are refused, since JSON has neither. Knows nothing of messages.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from reward_server.errors import InvalidGroupError


def dump_json(value: Any, what: str) -> str:
    """A value as JSON. Raises InvalidGroupError, which names `what` and the reason, if JSON cannot hold it."""
    try:
        return json.dumps(value, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise InvalidGroupError(f"{what} cannot be written as JSON: {error}") from error


def dump_columns(columns: Mapping[str, Any]) -> str:
    """Columns as a JSON object, "" for none. Raises InvalidGroupError, which names the column and the way out."""
    if not columns:
        return ""
    try:
        return json.dumps(columns, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError):
        pass  # the loop below finds out which column it is
    for name, value in columns.items():
        try:
            json.dumps({name: value}, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise InvalidGroupError(
                f"column {name!r} cannot be sent to the reward service: {value!r:.80} of type {type(value).__name__} "
                f"is not JSON ({error}); convert the column to text, numbers, lists or null, or drop it from the "
                "dataset (reward_columns says which columns are sent)"
            ) from error
    raise AssertionError("columns that JSON cannot hold include a column that JSON cannot hold")


def load_object(text: str, what: str) -> dict[str, Any]:
    """A JSON object, {} for "". Raises InvalidGroupError, which names `what`, for anything else."""
    if not text:
        return {}
    value = load_json(text, what)
    if not isinstance(value, dict):
        raise InvalidGroupError(f"{what} must be a JSON object, not {type(value).__name__}")
    return value


def load_json(text: str, what: str) -> Any:
    """A JSON value. Raises InvalidGroupError, which names `what`, for text that is none."""
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise InvalidGroupError(f"{what} is not JSON: {error}") from error


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
