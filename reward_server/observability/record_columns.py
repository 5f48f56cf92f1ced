"""A record as columns: the schema of Parquet parts, and the ways of a group into it.

Owns the columns, which docs/records.md documents. Knows nothing of files. Needs pyarrow, which is imported by those who
call `pyarrow_and_parquet`.

Legend: G completions of a group, S scorers.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from reward_server.errors import ConfigError

Columns: TypeAlias = Mapping[str, Sequence[Any]]
"""A group: G values under each name of the schema. A value of `scorers` is S tuples with the values of a scorer.

Tuples, since the garbage collector stops following those that hold plain values: a server keeps hundreds of groups.
"""


def columns_of(record: Mapping[str, Any]) -> Columns:
    """The columns of a record (a group, see `records.record_of`)."""
    completions = record["completions"]
    count = len(completions)
    nothing = (None,) * count
    training = record.get("training", {})
    contents = [each["content"] for each in completions]
    return {
        **{name: (record[name],) * count for name in _OF_THE_GROUP},
        "index": range(count),
        "of": (count,) * count,
        "prompt": _prompts(record),
        "prompt_is_messages": tuple(not isinstance(each.get("prompt", record["prompt"]), str) for each in completions),
        "completion": tuple(map(_text, contents)),
        "completion_is_messages": tuple(not isinstance(content, str) for content in contents),
        "columns": _columns(record),
        "reward": tuple(record["rewards"]),
        **{name: tuple(training.get(name, nothing)) for name in _OF_TRAINING},
        "scorers": tuple(zip(*(_scorer(name, told) for name, told in record["scorers"].items()), strict=True)),
    }


def rows_of(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A record as rows, one for each completion."""
    columns = columns_of(record)
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    for row in rows:
        row["scorers"] = [dict(zip(_SCORER_COLUMNS, scorer, strict=True)) for scorer in row["scorers"]]
    return rows


def table_of(groups: Iterable[Columns], schema: Any) -> Any:
    """The rows of groups as a table. Raises TypeError or ValueError for values that the schema cannot hold."""
    pa, _ = pyarrow_and_parquet()
    groups = list(groups)
    values = {name: list(itertools.chain.from_iterable(group[name] for group in groups)) for name in schema.names}
    scorers = values.pop("scorers")
    arrays = {name: pa.array(column, schema.field(name).type) for name, column in values.items()}
    arrays["scorers"] = _scorer_lists(pa, scorers, schema.field("scorers").type)
    return pa.Table.from_pydict(arrays, schema=schema)


def _scorer_lists(pa: Any, scorers: Sequence[Sequence[tuple[Any, ...]]], kind: Any) -> Any:
    offsets = pa.array(itertools.accumulate(map(len, scorers), initial=0), pa.int32())
    columns = list(zip(*itertools.chain.from_iterable(scorers), strict=True)) or [()] * len(_SCORER_COLUMNS)
    fields = list(kind.value_type)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, fields, strict=True)]
    return pa.ListArray.from_arrays(offsets, pa.StructArray.from_arrays(arrays, fields=fields), type=kind)


def _prompts(record: Mapping[str, Any]) -> tuple[str, ...]:
    shared = _text(record["prompt"])
    return tuple(_text(each["prompt"]) if "prompt" in each else shared for each in record["completions"])


def _columns(record: Mapping[str, Any]) -> tuple[str, ...]:
    shared, completions = record["columns"], record["completions"]
    text = json.dumps(shared)
    return tuple(json.dumps({**shared, **each["columns"]}) if "columns" in each else text for each in completions)


def _scorer(name: str, told: Mapping[str, Any]) -> Iterable[tuple[Any, ...]]:
    """What one scorer said of each completion, in the order of `_SCORER_COLUMNS`."""
    count = len(told["scores"])
    nothing = [""] * count
    extra = told.get("extra")
    extras = nothing
    if extra:
        extras = [json.dumps(dict(zip(extra, each, strict=True))) for each in zip(*extra.values(), strict=True)]
    shared = ((value,) * count for value in (name, told["version"], told["weight"]))
    return zip(*shared, told["scores"], told["statuses"], told.get("messages", nothing), extras, strict=True)


def _text(content: Any) -> str:
    """Text as it is, messages as JSON; lone surrogates, which Parquet cannot hold, are escaped."""
    text = content if isinstance(content, str) else json.dumps(content)
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def pyarrow_and_parquet() -> tuple[Any, Any]:
    """The library and its Parquet module. Raises ConfigError without them."""
    try:
        import pyarrow  # noqa: PLC0415 - the base install has none
        from pyarrow import parquet  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise ConfigError("records.format parquet needs pyarrow: pip install 'grpo-plugin[records]'") from error
    return pyarrow, parquet


def part_schema() -> Any:
    """The columns of a part. Raises ConfigError without pyarrow."""
    pa, _ = pyarrow_and_parquet()
    kinds = {"text": pa.string(), "integer": pa.int64(), "number": pa.float64(), "flag": pa.bool_()}
    scorer = pa.struct({name: kinds[kind] for name, kind in _SCORER_COLUMNS.items()})
    columns = {name: kinds[kind] for name, kind in _COLUMNS.items()}
    return pa.schema({**columns, "scorers": pa.list_(scorer)})


_OF_THE_GROUP = ("schema", "time", "run_id", "step", "group_id", "config_digest", "queued_s", "compute_s")
_OF_TRAINING = ("advantage", "length", "truncated", "dropped")
_SCORER_COLUMNS = {
    "name": "text",
    "version": "text",
    "weight": "number",
    "score": "number",
    "status": "text",
    "message": "text",
    "extra": "text",
}
# A row's columns beside `scorers`.
_COLUMNS = {
    "schema": "integer",
    "time": "text",
    "run_id": "text",
    "step": "integer",
    "group_id": "text",
    "index": "integer",
    "of": "integer",
    "prompt": "text",
    "prompt_is_messages": "flag",
    "completion": "text",
    "completion_is_messages": "flag",
    "columns": "text",
    "reward": "number",
    "config_digest": "text",
    "queued_s": "number",
    "compute_s": "number",
    "advantage": "number",
    "length": "integer",
    "truncated": "flag",
    "dropped": "flag",
}
