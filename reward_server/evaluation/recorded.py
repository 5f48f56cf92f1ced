"""Records, read: the groups of record files and what they were scored.

Owns the reading of JSONL record files, the turned-over ones included, and the way back from a record to a group. What a
record holds is said where it is written (`observability.records`).
"""

from __future__ import annotations

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

    @property
    def key(self) -> str:
        """What tells this group from all others: run, step and group."""
        return json.dumps([self.group.run_id, self.group.step, self.group.group_id])


def read_records(paths: Sequence[Path]) -> Iterator[Record]:
    """The records of all files, oldest turned-over file first; of a group that was recorded twice, the first.

    A last line that is not complete (the writer was killed, or is writing) is left out. Raises InvalidGroupError for a
    file that holds no records.
    """
    seen: set[str] = set()
    for path in paths:
        for file in files_of(path):
            for record in _records_of(file):
                if record.key not in seen:
                    seen.add(record.key)
                    yield record


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
