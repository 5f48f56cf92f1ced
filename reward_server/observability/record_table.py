"""Scored groups as a table of Parquet: a row for each completion.

Owns the schema of the parts, whose values are those of `record_form.rows_of`. Knows nothing of files. Needs pyarrow,
which is imported by those who call `pyarrow_and_parquet`; it repeats for every completion what a group has once.

Legend: B groups, R completions of all of them, S scorers of a group.
"""

from __future__ import annotations

import array
import itertools
from collections.abc import Iterable, Sequence
from typing import Any

from reward_server.errors import ConfigError
from reward_server.observability.record_columns import GroupColumns, ScorerColumns
from reward_server.observability.record_form import OF_TRAINING, SCHEMA_VERSION, time_of


def table_of(groups: Sequence[GroupColumns], schema: Any) -> Any:
    """The rows of groups as a table. Raises TypeError or ValueError for values that the schema cannot hold."""
    pa, _ = pyarrow_and_parquet()
    rows = _Repeated(pa, [group.size for group in groups])
    values = {
        **{name: [getattr(group, name) for group in groups] for name in _OF_THE_GROUP},
        "schema": [SCHEMA_VERSION] * len(groups),
        "time": [time_of(group.at) for group in groups],
        "of": rows.sizes,
    }
    arrays = {name: rows.shared(of_B, schema.field(name).type) for name, of_B in values.items()}
    for name, of_BG in _own_values(groups).items():
        arrays[name] = rows.own(of_BG, schema.field(name).type)
    arrays["index"] = pa.array(itertools.chain.from_iterable(map(range, rows.sizes)), schema.field("index").type)
    arrays["completion"] = _texts(pa, groups)
    arrays["scorers"] = _scorer_lists(pa, groups, schema.field("scorers").type)
    return pa.Table.from_pydict(arrays, schema=schema)


def _own_values(groups: Sequence[GroupColumns]) -> dict[str, list[Sequence[Any]]]:
    """The columns of which a group may have a value for each completion."""
    return {
        "prompt": [group.prompts for group in groups],
        "prompt_is_messages": [group.prompts_are_messages for group in groups],
        "completion_is_messages": [group.completions_are_messages for group in groups],
        "columns": [group.columns for group in groups],
        "reward": [group.rewards for group in groups],
        **{name: [_training(group, name) for group in groups] for name in OF_TRAINING},
    }


def _training(group: GroupColumns, name: str) -> Sequence[Any]:
    return group.training[name] if group.training and name in group.training else (None,)


class _Repeated:
    """Makes columns out of the values of parts, each of which has `sizes[part]` rows."""

    def __init__(self, pa: Any, sizes: Sequence[int]):
        self.sizes = sizes
        self._pa = pa
        self._part_R = pa.array(_repeat(range(len(sizes)), sizes), pa.int32())

    def shared(self, values: Sequence[Any], kind: Any) -> Any:
        """A column of one value a part."""
        return self._pa.array(values, kind).take(self._part_R)

    def own(self, values: Sequence[Sequence[Any]], kind: Any) -> Any:
        """A column of parts that have a value for each row, or one for all."""
        if all(len(each) == 1 for each in values):
            return self.shared([each[0] for each in values], kind)
        parts = (each if len(each) == size else [each[0]] * size for each, size in zip(values, self.sizes, strict=True))
        return self._pa.array(list(itertools.chain.from_iterable(parts)), kind)


def _repeat(values: Iterable[Any], times: Sequence[int]) -> list[Any]:
    return list(itertools.chain.from_iterable(map(itertools.repeat, values, times)))


def _texts(pa: Any, groups: Sequence[GroupColumns]) -> Any:
    """The completions, without an object for each."""
    lengths = itertools.chain.from_iterable(group.lengths for group in groups)
    offsets = array.array("i", itertools.accumulate(lengths, initial=0))
    texts = b"".join([group.completions for group in groups])
    return pa.StringArray.from_buffers(len(offsets) - 1, pa.py_buffer(offsets), pa.py_buffer(texts))


def _scorer_lists(pa: Any, groups: Sequence[GroupColumns], kind: Any) -> Any:
    """For each row the structs of its group's scorers: first they lie scorer by scorer, then they are put in order."""
    scorers = [scorer for group in groups for scorer in group.scorers]
    rows = _Repeated(pa, [len(scorer.scores) for scorer in scorers])
    columns = [
        rows.own(values, field.type) for values, field in zip(_scorer_values(scorers), kind.value_type, strict=True)
    ]
    structs = pa.StructArray.from_arrays(columns, fields=list(kind.value_type))
    counts = _repeat((len(group.scorers) for group in groups), [group.size for group in groups])
    offsets = pa.array(itertools.accumulate(counts, initial=0), pa.int32())
    return pa.ListArray.from_arrays(offsets, structs.take(pa.array(_places(groups), pa.int32())), type=kind)


def _scorer_values(scorers: Sequence[ScorerColumns]) -> list[list[Sequence[Any]]]:
    """The values of each scorer, in the order of the schema's columns."""
    return [
        [(scorer.name,) for scorer in scorers],
        [(scorer.version,) for scorer in scorers],
        [(scorer.weight,) for scorer in scorers],
        [scorer.scores for scorer in scorers],
        [scorer.statuses for scorer in scorers],
        [scorer.messages for scorer in scorers],
        [scorer.extras for scorer in scorers],
    ]


def _places(groups: Sequence[GroupColumns]) -> list[int]:
    """Where the values lie that are wanted completion by completion, in each of them scorer by scorer."""
    places: list[int] = []
    for group in groups:
        first, size = len(places), group.size
        end = first + size * len(group.scorers)
        for row in range(size):
            places.extend(range(first + row, end, size))
    return places


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


_OF_THE_GROUP = ("run_id", "step", "group_id", "config_digest", "queued_s", "compute_s")
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
