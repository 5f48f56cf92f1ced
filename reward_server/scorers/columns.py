"""The base of scorers that compare completions with one column of the dataset.

Owns which column such a scorer requires. Knows nothing of what is in it.
"""

from __future__ import annotations

from reward_server.scorers.base import OptionsT, Scorer


class ColumnScorer(Scorer[OptionsT]):
    """A scorer whose options have `column`: the name of the column that it requires, or None if it requires none."""

    @property
    def required_columns(self) -> tuple[str, ...]:
        column: str | None = getattr(self.options, "column", None)
        return () if column is None else (column,)
