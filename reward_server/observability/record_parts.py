"""Records as Parquet: a folder of parts, each a whole file of some groups, a row for each completion.

Owns the parts; their columns are `record_table`'s. A part is written under another name and renamed when it is
complete: a reader never sees half of one, and a writer that is killed loses only the groups of its open part. Needs
pyarrow, which is imported when a folder is opened.

Several processes may write to one folder: a part's name holds the process that wrote it.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from reward_server.errors import ConfigError
from reward_server.observability.record_columns import GroupColumns, columns_of
from reward_server.observability.record_form import Training
from reward_server.observability.record_table import part_schema, pyarrow_and_parquet, table_of
from reward_server.types import Group, GroupScores

PART_PATTERN = "*.parquet"

_MOST_TEXT_BYTES = 1 << 30  # half of what the 32 bits of an offset reach


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
        table_of([], self._schema)  # with its first array pyarrow imports pandas: not while calls wait
        self._groups: list[GroupColumns] = []  # of the open part
        self.written = 0
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
        """Seconds until `write` is to close the open part; None if there is none."""
        return None if not self._groups else max(0.0, self._began + self._part_s - time.monotonic())

    @property
    def waiting(self) -> int:
        """How many groups the open part has."""
        return len(self._groups)

    def encoded(self, group: Group, scores: GroupScores, at: float, training: Training | None = None) -> GroupColumns:
        """A group as its columns. Raises TypeError or ValueError for values that JSON cannot hold."""
        return columns_of(group, scores, at, training)

    def write(self, groups: Sequence[GroupColumns]) -> None:
        """Takes groups, and writes the parts that are due. Raises OSError if that fails; their groups are lost."""
        while groups:
            room = self._part_groups - self.waiting
            self._add(groups[:room])
            groups = groups[room:]
            if self.waiting == self._part_groups:
                self.close_part()
        if self.due_in_s == 0.0:
            self.close_part()

    def _add(self, groups: Sequence[GroupColumns]) -> None:
        if not self._groups:
            self._began = time.monotonic()
        self._groups.extend(groups)

    def close_part(self) -> None:
        """Writes what there is as a part. Raises OSError; the groups are lost then, and nothing half is left."""
        groups, self._groups = self._groups, []
        if not groups:
            return
        tables = list(self._tables(groups))
        name = f"{time.time_ns():020d}-{os.getpid()}-{next(self._numbers):06d}"
        partial = self._folder / f".{name}.partial"
        pyarrow, parquet = pyarrow_and_parquet()
        try:
            with open(partial, "xb", opener=_private) as file:
                parquet.write_table(pyarrow.concat_tables(tables), file, compression="zstd", write_statistics=["step"])
            partial.rename(self._folder / f"{name}.parquet")
        except OSError:
            with contextlib.suppress(OSError):
                partial.unlink()
            raise
        self.written += len(groups)
        self._remove_oldest()

    def _tables(self, groups: Sequence[GroupColumns]) -> Iterator[Any]:
        """One, unless their text is too long for one."""
        while groups:
            fitting = _fitting(groups)
            yield table_of(groups[:fitting], self._schema)
            groups = groups[fitting:]

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


def _fitting(groups: Sequence[GroupColumns]) -> int:
    """How many of the groups make a table, of whose columns none may hold more text; one at least."""
    ends = itertools.accumulate(group.text_bytes for group in groups)
    return max(1, sum(1 for _ in itertools.takewhile(lambda end: end <= _MOST_TEXT_BYTES, ends)))


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
