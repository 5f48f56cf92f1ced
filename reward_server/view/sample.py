"""Whole groups, drawn from all that are recorded, as numbers in memory: what the signs of hacking are computed from.

Owns the draw, which is by the group's name, so that it is the same each time, and two ranges of steps to compare.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy
import pandas

from reward_server.view.store import Store

MOST_COMPLETIONS = 20_000
KEY = ["run_id", "step", "group_id", "index"]
_SHARES = 1_000_000
# Which groups are in the sample; its parameters are run, run and the threshold.
DRAWN = f"(? IS NULL OR run_id = ?) AND hash(run_id, step, group_id) % {_SHARES} < ?"


@dataclass(frozen=True)
class Sample:
    """`rows`: a row a completion, with KEY, group (a number), reward and size; `scores`: its score by each scorer.

    Scores that failed are NaN. `drawn` are the parameters of DRAWN; `of` counts the completions that were drawn from.
    """

    rows: pandas.DataFrame
    scores: pandas.DataFrame
    drawn: tuple[Any, ...]
    of: int

    @property
    def scorers(self) -> list[str]:
        return list(self.scores.columns)

    def within(self, first: int, last: int) -> Sample:
        """The part between two steps, both included."""
        chosen = self.rows.step.between(first, last)
        return Sample(self.rows[chosen], self.scores[chosen], self.drawn, self.of)


def draw(store: Store, run: str | None, most: int = MOST_COMPLETIONS) -> Sample:
    """At most about so many completions, in whole groups."""
    condition = "? IS NULL OR run_id = ?"
    count = int(store.query(f"SELECT count(*) AS count FROM completions WHERE {condition}", [run, run])["count"][0])
    drawn = (run, run, _SHARES if count <= most else int(_SHARES * most / count))
    table = store.query(
        f"""
        SELECT run_id, step, group_id, "index", reward, size,
               dense_rank() OVER (ORDER BY run_id, step, group_id) AS "group",
               list_transform(scorers, lambda s: s.name) AS names, list_transform(scorers, lambda s: s.score) AS scores
        FROM completions WHERE {DRAWN} ORDER BY "group", "index"
        """,
        drawn,
    )
    rows = table[[*KEY, "group", "reward", "size"]].astype({"reward": float})
    return Sample(rows, _wide(table), drawn, count)


def _wide(table: pandas.DataFrame) -> pandas.DataFrame:
    """A column for each scorer; configurations may differ from row to row."""
    names = list(dict.fromkeys(name for row in table.names for name in row))
    column = {name: number for number, name in enumerate(names)}
    values = numpy.full((len(table), len(names)), numpy.nan)
    for row, (row_names, scores) in enumerate(zip(table.names, table.scores, strict=True)):
        for name, score in zip(row_names, scores, strict=True):
            values[row, column[name]] = numpy.nan if score is None else score
    return pandas.DataFrame(values, columns=names, index=table.index)


@dataclass(frozen=True)
class Ranges:
    """Two ranges of steps, both ends included: what was, and what has become of it."""

    early: tuple[int, int]
    late: tuple[int, int]

    @classmethod
    def of(cls, first: int, last: int) -> Ranges:
        """The first and the last quarter of a run."""
        quarter = max(0, (last - first + 1) // 4 - 1)
        return cls((first, first + quarter), (last - quarter, last))
