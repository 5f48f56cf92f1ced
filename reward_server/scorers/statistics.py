"""Mean and standard deviation of a stream of scores: merged, and kept in a file that several processes add to.

Owns the arithmetic (Welford's, and Chan, Golub and LeVeque's for merging, 1979) and the file. Knows nothing of scorers.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self


@dataclass(frozen=True, slots=True)
class Statistics:
    """The number of values, their mean, and the sum of the squared differences from the mean."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    @classmethod
    def of(cls, values: Iterable[float]) -> Self:
        """The statistics of these values."""
        values = list(values)
        if not values:
            return cls()
        mean = sum(values) / len(values)
        return cls(len(values), mean, sum((value - mean) * (value - mean) for value in values))

    @property
    def std(self) -> float:
        """The sample's standard deviation; 0 for fewer than two values."""
        return math.sqrt(self.squares / (self.count - 1)) if self.count > 1 else 0.0

    def merged(self, other: Self) -> Self:
        """The statistics of both streams together."""
        count = self.count + other.count
        if not self.count or not other.count:
            return other if other.count else self
        gap = other.mean - self.mean
        mean = self.mean + gap * other.count / count
        return type(self)(count, mean, self.squares + other.squares + gap * gap * self.count * other.count / count)

    def normalised(self, value: float) -> float:
        """How many standard deviations a value is above the mean."""
        return (value - self.mean) / self.std


def read_statistics(path: Path) -> Statistics:
    """The statistics in a file. Raises OSError, or ValueError that says what is wrong with the file."""
    held = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(held, dict) or set(held) != {"count", "mean", "squares"}:
        raise ValueError(f"it must hold count, mean and squares, not {held!r:.80}")
    statistics = Statistics(int(held["count"]), float(held["mean"]), float(held["squares"]))
    if not (math.isfinite(statistics.mean) and math.isfinite(statistics.std)):
        raise ValueError(f"mean {statistics.mean} and squares {statistics.squares} must be finite")
    return statistics


def add_to_file(path: Path, more: Statistics) -> None:
    """Adds to the statistics in a file, or makes the file. Several processes may do so; a reader sees whole states."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f"{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        held = read_statistics(path) if path.exists() else Statistics()
        new = path.with_name(f"{path.name}.new")
        new.write_text(json.dumps(asdict(held.merged(more))) + "\n")
        os.replace(new, path)
