"""Records, read: the groups of record files and what they were scored.

Owns the reading of JSONL files, the turned-over ones included, and of folders of Parquet parts, and the way back from a
record to a group. What a record holds is said where it is written (`observability.records`).
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reward_server.errors import InvalidGroupError
from reward_server.types import Completion, Group


@dataclass(frozen=True)
class Record:
    """One recorded group. `rewards_G` has None where a score failed; so have the scores of each scorer."""

    where: str
    group: Group
    rewards_G: Sequence[float | None]
    scores: Mapping[str, Sequence[float | None]]
    config_digest: str

    @functools.cached_property
    def key(self) -> str:
        """What tells this group from all others: its names and its texts, since names may be empty or come again."""
        group = self.group
        texts = json.dumps([group.prompt, group.contents()]).encode()
        digest = hashlib.blake2b(texts, digest_size=16).hexdigest()
        return json.dumps([group.run_id, group.step, group.group_id, digest])


def read_records(paths: Sequence[Path]) -> Iterator[Record]:
    """The records of all files, oldest turned-over file first; of a group that was recorded twice, as after a
    retry, the first.

    A last line that is not complete (the writer was killed, or is writing) is left out. Raises InvalidGroupError for a
    file that holds no records.
    """
    seen: set[str] = set()
    for path in paths:
        for record in _records_at(path):
            if record.key not in seen:
                seen.add(record.key)
                yield record


def _records_at(path: Path) -> Iterator[Record]:
    if path.is_dir() or path.suffix == ".parquet":
        yield from parquet_records(path)
        return
    for file in files_of(path):
        yield from _records_of(file)


def files_of(path: Path) -> list[Path]:
    """A record file and those that it was turned over into, the oldest first. Raises InvalidGroupError."""
    numbered = [file for file in path.parent.glob(f"{path.name}.*") if file.suffix[1:].isdecimal()]
    found = [*sorted(numbered, key=lambda file: -int(file.suffix[1:])), *([path] if path.exists() else [])]
    if not found:
        raise InvalidGroupError(f"there is no record file {path}")
    return found


def _records_of(path: Path) -> Iterator[Record]:
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    return
                yield _record(line, f"{path}, line {number}")
    except OSError as error:
        raise InvalidGroupError(f"cannot read {path}: {error.strerror}") from error


def _record(line: bytes, where: str) -> Record:
    try:
        told = json.loads(line)
        return Record(
            where,
            _group(told),
            told["rewards"],
            {name: scorer["scores"] for name, scorer in told["scorers"].items()},
            told["config_digest"],
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidGroupError(
            f"{where} is not a record of a reward server ({type(error).__name__}: {error})"
        ) from error


def _group(told: Mapping[str, Any]) -> Group:
    completions = tuple(
        Completion(each["content"], columns=each.get("columns", {}), prompt=each.get("prompt"))
        for each in told["completions"]
    )
    return Group(told["prompt"], completions, told["columns"], told["run_id"], told["step"], group_id=told["group_id"])


# ------------------------------------------------------------------------------------------------------------- Parquet


def parquet_records(path: Path) -> Iterator[Record]:
    """The groups of a folder of parts, or of one part. Raises InvalidGroupError."""
    try:
        from pyarrow import ArrowException, parquet  # noqa: PLC0415 - the base install has none
    except ModuleNotFoundError as error:
        raise InvalidGroupError(f"reading {path} needs pyarrow: pip install 'grpo-plugin[records]'") from error
    parts = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not parts:
        raise InvalidGroupError(f"there is no Parquet part in the folder {path}")
    for part in parts:
        try:
            rows = parquet.read_table(part).to_pylist()
            for _, group in itertools.groupby(rows, key=lambda row: (row["run_id"], row["step"], row["group_id"])):
                yield _of_rows(list(group), str(part))
        except (ArrowException, OSError, KeyError, ValueError) as error:
            raise InvalidGroupError(f"{part} is not a part of a reward server's records: {error}") from error


def _of_rows(rows: Sequence[Mapping[str, Any]], where: str) -> Record:
    first = rows[0]
    group = Group.of_rows(
        [_content(row["prompt"], row["prompt_is_messages"]) for row in rows],
        [_content(row["completion"], row["completion_is_messages"]) for row in rows],
        None,
        [json.loads(row["columns"]) for row in rows],
        run_id=first["run_id"],
        step=first["step"],
        group_id=first["group_id"],
    )
    scores = {
        scorer["name"]: [row["scorers"][index]["score"] for row in rows]
        for index, scorer in enumerate(first["scorers"])
    }
    return Record(where, group, [row["reward"] for row in rows], scores, first["config_digest"])


def _content(text: str, is_messages: bool) -> Any:
    return json.loads(text) if is_messages else text
