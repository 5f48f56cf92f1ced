"""JSON lines that may still grow, read as rows of completions: only what is new each time.

Owns how far each file was read. A file keeps its place when it is turned over under another name: it is known by its
inode and by how it begins, since the inode of a removed file is soon that of another. A last line that is not complete
is read when it is.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reward_server.errors import InvalidGroupError
from reward_server.evaluation.recorded import files_of
from reward_server.observability.record_form import rows_of
from reward_server.view.sources import KNOWN_SCHEMA

_BATCH_BYTES = 16 << 20
# A line begins with its time in milliseconds, run, step and group.
_BEGINNING_BYTES = 512

Row = dict[str, Any]


@dataclass
class Tail:
    """A record file and those that it was turned over into.

    `problem` is a sentence once something is wrong with it; `present` identifies the files that were there last time.
    """

    path: Path
    problem: str = ""
    present: set[int] = field(default_factory=set)
    _read: dict[int, int] = field(default_factory=dict)
    _lines: dict[int, int] = field(default_factory=dict)

    @property
    def position(self) -> tuple[tuple[int, int], ...]:
        """What tells whether anything was read since: which files, and how many bytes of each."""
        return tuple(sorted(self._read.items()))

    def new_rows(self) -> Iterator[tuple[int, list[Row]]]:
        """Batches of rows of completions that were written since, with what identifies their file."""
        self.present = set()
        try:
            files = files_of(self.path)
        except InvalidGroupError as error:
            self.problem = f"{error}."
            return
        for file in files:
            try:
                yield from self._of_file(file)
            except FileNotFoundError:
                continue  # turned over between the listing and the reading; it is read under its new name next time
            except OSError as error:
                self.problem = f"cannot read {file}: {error.strerror}."
        self._read = {known: read for known, read in self._read.items() if known in self.present}

    def _of_file(self, path: Path) -> Iterator[tuple[int, list[Row]]]:
        with path.open("rb") as file:
            beginning = file.read(_BEGINNING_BYTES)
            if b"\n" not in beginning and len(beginning) < _BEGINNING_BYTES:
                return  # not even one whole line yet
            known = (os.fstat(file.fileno()).st_ino << 32 | zlib.crc32(beginning.split(b"\n")[0])) % 2**64
            self.present.add(known)
            file.seek(self._read.setdefault(known, 0))
            while lines := file.readlines(_BATCH_BYTES):
                whole = [line for line in lines if line.endswith(b"\n")]
                rows = [row for line in whole for row in self._rows(line, path, known)]
                self._read[known] += sum(map(len, whole))
                if rows:
                    yield known, rows

    def _rows(self, line: bytes, path: Path, known: int) -> list[Row]:
        number = self._lines[known] = self._lines.get(known, 0) + 1
        try:
            record = json.loads(line)
            if record["schema"] > KNOWN_SCHEMA:
                self.problem = f"{path} was written by a newer version (schema {record['schema']}); update grpo-plugin."
                return []
            return [_speakable(row) for row in rows_of(record)]
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            self.problem = f"{path}, line {number}, is not a record of a reward server; the line is left out."
            return []


def _speakable(value: Any) -> Any:
    """With lone surrogates, which no database holds, escaped."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {name: _speakable(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_speakable(item) for item in value]
    return value
