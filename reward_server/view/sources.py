"""What the paths on the command line are: JSON lines, Parquet parts, run folders; and why a file cannot be read.

Owns the listing of files and the sentences about those that are damaged, foreign or empty. Opens no database.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from reward_server.errors import ConfigError

METRICS_FILE = "metrics.jsonl"
RUN_RECORDS = "records"
# The columns of a part that every view needs; a file without them was not written by a reward server.
NEEDED = {"schema", "run_id", "step", "group_id", "index", "prompt", "completion", "reward", "scorers"}
KNOWN_SCHEMA = 1


@dataclass(frozen=True)
class Sources:
    """Given paths, by what they are. A path may be a run and hold records too."""

    lines: tuple[Path, ...] = ()
    parts: tuple[Path, ...] = ()
    runs: tuple[Path, ...] = ()

    @property
    def names(self) -> list[str]:
        """The record files and folders, in the order in which they were given."""
        return [str(path) for path in (*self.parts, *self.lines)]

    def only(self, name: str) -> Sources:
        """One of the record files or folders, and the runs."""
        lines = tuple(path for path in self.lines if str(path) == name)
        return Sources(lines, tuple(path for path in self.parts if str(path) == name), self.runs)


def sources_of(paths: Sequence[Path]) -> Sources:
    """Sorts paths into what they are. Raises ConfigError for one that does not exist or holds nothing to show."""
    lines: list[Path] = []
    parts: list[Path] = []
    runs: list[Path] = []
    for path in paths:
        if not path.exists() and not path.with_name(f"{path.name}.1").exists():
            raise ConfigError(f"there is no record file or run folder {path} (working folder: {Path.cwd()})")
        if not path.is_dir():
            (parts if path.suffix == ".parquet" else lines).append(path)
            continue
        is_run = (path / METRICS_FILE).exists()
        if is_run:
            runs.append(path)
        if (path / RUN_RECORDS).is_dir():
            parts.append(path / RUN_RECORDS)
        elif not is_run:
            parts.append(path)
    return Sources(tuple(lines), tuple(parts), tuple(runs))


@dataclass
class PartList:
    """The Parquet parts of some paths, as they come and go. `problems` has a sentence for each one that is left out."""

    paths: tuple[Path, ...]
    problems: dict[Path, str] = field(default_factory=dict)
    columns: dict[Path, frozenset[str]] = field(default_factory=dict)

    def current(self) -> list[Path]:
        """The readable parts that are there now, in the order in which they were written."""
        found = [part for path in self.paths for part in (sorted(path.glob("*.parquet")) if path.is_dir() else [path])]
        for part in found:
            if part not in self.columns and part not in self.problems:
                self._inspect(part)
        gone = (self.columns.keys() | self.problems.keys()) - set(found)
        for part in gone:
            self.columns.pop(part, None)
            self.problems.pop(part, None)
        return [part for part in found if part in self.columns]

    def _inspect(self, part: Path) -> None:
        from pyarrow import ArrowException, parquet  # noqa: PLC0415 - the base install has none

        try:
            columns = frozenset(parquet.read_schema(part).names)
        except (ArrowException, OSError) as error:
            self.problems[part] = f"{part} is damaged or is no Parquet file ({str(error).splitlines()[0]:.100})."
            return
        if missing := NEEDED - columns:
            self.problems[part] = f"{part} is not a part of a reward server's records: it has no {min(missing)}."
            return
        self.columns[part] = columns
