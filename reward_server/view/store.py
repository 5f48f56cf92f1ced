"""All recorded completions as one relation in DuckDB, over files that may still be written.

Owns the database and what it reads; the views ask in SQL. Parquet parts are queried where they lie; JSON lines are read
into memory as they grow, into the same columns. Users' words reach a query as its parameters and never as its text.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb
import pandas
import pyarrow

from reward_server.observability.record_table import part_schema
from reward_server.view.sources import PartList, Sources
from reward_server.view.tail import Tail

Parameters = Sequence[Any] | Mapping[str, Any]

_COMPLETIONS = """
CREATE OR REPLACE VIEW completions AS
SELECT *, coalesce("length", length(completion)) AS size FROM (
    SELECT run_id, step, group_id, "index", "of", prompt, completion, columns, reward, scorers, advantage, "length",
           truncated, dropped, config_digest, queued_s, compute_s
    FROM parts
    UNION ALL
    SELECT run_id, step, group_id, "index", "of", prompt, completion, columns, reward, scorers, advantage, "length",
           truncated, dropped, config_digest, queued_s, compute_s
    FROM lines
)
"""


class Store:
    """The relation `completions`: a row for each recorded completion, with `size`, its length in tokens or characters.

    Several threads may use it: each query has a cursor of its own.
    """

    def __init__(self, sources: Sources):
        self.sources = sources
        # Nothing may fetch an extension from the network.
        options = {"autoinstall_known_extensions": False, "autoload_known_extensions": False}
        self._database = duckdb.connect(":memory:", config=options)
        self._parts = PartList(sources.parts)
        self._tails = [Tail(path) for path in sources.lines]
        self._shown_parts: list[Path] | None = None
        self._lock = threading.Lock()
        empty = part_schema().empty_table()
        self._database.register("none", empty)
        self._database.execute("CREATE TABLE lines AS SELECT *, 0::UBIGINT AS file FROM none")
        self._database.execute("CREATE TABLE no_parts AS SELECT * FROM none")
        self._database.unregister("none")
        self.refresh()

    @property
    def problems(self) -> list[str]:
        """A sentence for each file that cannot be read as it should."""
        return [*self._parts.problems.values(), *(tail.problem for tail in self._tails if tail.problem)]

    @property
    def fingerprint(self) -> tuple[Any, ...]:
        """What the answers depend on: it changes when there is something new to read."""
        return (tuple(self._shown_parts or ()), tuple(tail.position for tail in self._tails))

    def refresh(self) -> None:
        """Sees what was written, and removed, since the last time."""
        with self._lock:
            self._refresh_parts()
            for tail in self._tails:
                self._read_lines(tail)
            self._forget_removed()

    def query(self, sql: str, parameters: Parameters = ()) -> pandas.DataFrame:
        """The answer to one query. A part that its writer has removed in the meantime is left out."""
        try:
            return self._database.cursor().execute(sql, parameters).df()
        except (duckdb.IOException, duckdb.InvalidInputException):
            self.refresh()
            return self._database.cursor().execute(sql, parameters).df()

    def close(self) -> None:
        self._database.close()

    def _refresh_parts(self) -> None:
        current = self._parts.current()
        if current == self._shown_parts:
            return
        if current:
            alike = len({self._parts.columns[part] for part in current}) == 1
            files = [str(part) for part in current]
            relation: Any = self._database.read_parquet(files, union_by_name=not alike)
        else:
            relation = self._database.table("no_parts")
        relation.create_view("parts", replace=True)
        self._database.execute(_COMPLETIONS)
        self._shown_parts = current

    def _read_lines(self, tail: Tail) -> None:
        cursor = self._database.cursor()
        for known, rows in tail.new_rows():
            batch = pyarrow.Table.from_pylist(rows, schema=part_schema())
            cursor.register("batch", batch)
            cursor.execute("INSERT INTO lines BY NAME SELECT *, ?::UBIGINT AS file FROM batch", [known])
            cursor.unregister("batch")

    def _forget_removed(self) -> None:
        """The writer keeps so many files; what it removed is not shown either, or memory would grow for ever."""
        kept = sorted(set[int]().union(*(tail.present for tail in self._tails)))
        if self._tails:
            self._database.execute("DELETE FROM lines WHERE NOT list_contains(?::UBIGINT[], file)", [kept])
