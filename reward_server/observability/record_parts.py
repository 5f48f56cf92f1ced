"""Records as Parquet: a folder of parts, each a whole file of some groups, a row for each completion.

Owns the columns and the parts. A part is written under another name and renamed when it is complete: a reader never
sees half of one, and a writer that is killed loses only the groups that it had not written yet. Needs pyarrow, which
is imported when a folder is opened.

Several processes may write to one folder: a part's name holds the process that wrote it.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reward_server.errors import ConfigError

SCHEMA_VERSION = 1
PART_PATTERN = "*.parquet"


class RecordParts:
    """Rows on their way into parts: one closes after `part_groups` groups or `part_s` seconds, whichever is first.

    When all parts together are larger than `max_bytes`, the oldest are removed.
    """

    def __init__(self, folder: Path, part_groups: int, part_s: float, max_bytes: int):
        """Makes the folder. Raises ConfigError if it cannot be written, or pyarrow is missing."""
        self._folder = folder
        self._part_groups = part_groups
        self._part_s = part_s
        self._max_bytes = max_bytes
        self._schema = part_schema()
        self._rows: list[Mapping[str, Any]] = []
        self.waiting = 0
        self._began = 0.0
        self._numbers = itertools.count()
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            (probe := folder / f".{os.getpid()}.probe").touch(0o600)
            probe.unlink()
        except OSError as error:
            raise ConfigError(f"records.path: cannot write to the folder {folder}: {error.strerror}") from error

    def __str__(self) -> str:
        return str(self._folder)

    @property
    def due_in_s(self) -> float | None:
        """Seconds until the open part is to be closed by `close_if_due`; None if it holds nothing."""
        return None if not self._rows else max(0.0, self._began + self._part_s - time.monotonic())

    def write(self, record: Mapping[str, Any]) -> None:
        """Takes one group. Raises OSError where a part that is due cannot be written; its groups are lost."""
        if not self._rows:
            self._began = time.monotonic()
        self._rows += rows_of(record)
        self.waiting += 1
        self.close_if_due()

    def close_if_due(self) -> None:
        """Writes the open part if it holds enough groups, or has been open for long enough."""
        if self._rows and (self.waiting >= self._part_groups or self.due_in_s == 0.0):
            self.close_part()

    def close_part(self) -> None:
        """Writes what there is as a part. Raises OSError; the groups are lost then, and nothing half is left."""
        import pyarrow  # noqa: PLC0415 - the base install has none
        from pyarrow import parquet  # noqa: PLC0415

        rows, self._rows, self.waiting = self._rows, [], 0
        if not rows:
            return
        name = f"{time.time_ns():020d}-{os.getpid()}-{next(self._numbers):06d}"
        partial = self._folder / f".{name}.partial"
        try:
            table = pyarrow.Table.from_pylist(list(rows), schema=self._schema)
            with open(partial, "xb", opener=_private) as file:
                parquet.write_table(table, file, compression="zstd")
            partial.rename(self._folder / f"{name}.parquet")
        except OSError:
            with contextlib.suppress(OSError):
                partial.unlink()
            raise
        self._remove_oldest()

    def close(self) -> None:
        self.close_part()

    def _remove_oldest(self) -> None:
        sizes = {}
        for part in sorted(self._folder.glob(PART_PATTERN), reverse=True):
            with contextlib.suppress(FileNotFoundError):  # another process removed it
                sizes[part] = part.stat().st_size
        for part, total in zip(sizes, itertools.accumulate(sizes.values()), strict=True):
            if total > self._max_bytes and part != next(iter(sizes)):
                part.unlink(missing_ok=True)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def rows_of(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A record (a group, see `records.record_of`) as rows, one for each completion."""
    shared = {name: record[name] for name in _OF_THE_GROUP}
    shared |= {"of": len(record["completions"]), **_prompt(record["prompt"]), "columns": json.dumps(record["columns"])}
    scorers = [_of_completions(name, scorer) for name, scorer in record["scorers"].items()]
    rows = [
        {
            **shared,
            "index": index,
            "completion": _text(completion["content"]),
            "completion_is_messages": not isinstance(completion["content"], str),
            "reward": record["rewards"][index],
            "scorers": [scores[index] for scores in scorers],
        }
        for index, completion in enumerate(record["completions"])
    ]
    for index, (row, completion) in enumerate(zip(rows, record["completions"], strict=True)):
        if "columns" in completion:
            row["columns"] = json.dumps({**record["columns"], **completion["columns"]})
        if "prompt" in completion:
            row.update(_prompt(completion["prompt"]))
        row.update({name: values[index] for name, values in record.get("training", {}).items()})
    return rows


_OF_THE_GROUP = ("schema", "time", "run_id", "step", "group_id", "config_digest", "queued_s", "compute_s")


def _prompt(content: Any) -> dict[str, Any]:
    return {"prompt": _text(content), "prompt_is_messages": not isinstance(content, str)}


def _of_completions(name: str, scorer: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One scorer's words, completion by completion."""
    nothing = [""] * len(scorer["scores"])
    extra = scorer.get("extra")
    extras = nothing
    if extra:
        extras = [json.dumps(dict(zip(extra, each, strict=True))) for each in zip(*extra.values(), strict=True)]
    shared = {"name": name, "version": scorer["version"], "weight": scorer["weight"]}
    told = zip(scorer["scores"], scorer["statuses"], scorer.get("messages", nothing), extras, strict=True)
    return [
        {**shared, "score": score, "status": status, "message": message, "extra": more}
        for score, status, message, more in told
    ]


def _text(content: Any) -> str:
    """Text as it is, messages as JSON; lone surrogates, which Parquet cannot hold, are escaped."""
    text = content if isinstance(content, str) else json.dumps(content)
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def part_schema() -> Any:
    """The columns of a part. Raises ConfigError without pyarrow."""
    try:
        import pyarrow as pa  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise ConfigError("records.format parquet needs pyarrow: pip install 'grpo-plugin[records]'") from error
    kinds = {"text": pa.string(), "integer": pa.int64(), "number": pa.float64(), "flag": pa.bool_()}
    scorer = pa.struct({name: kinds[kind] for name, kind in _SCORER_COLUMNS.items()})
    columns = {name: kinds[kind] for name, kind in _COLUMNS.items()}
    return pa.schema({**columns, "scorers": pa.list_(scorer)})


_SCORER_COLUMNS = {
    "name": "text",
    "version": "text",
    "weight": "number",
    "score": "number",
    "status": "text",
    "message": "text",
    "extra": "text",
}
# A row's columns beside `scorers`; the last four are known to a trainer alone.
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
