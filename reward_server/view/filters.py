"""Which completions are looked at, the groups that hold them, and one group.

Owns the filter and its SQL, in which a user's words are parameters.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

import pandas

from reward_server.view.store import Store

REWARD = "reward"
MOST_GROUPS = 200
Key = tuple[str, int, str]
"""run_id, step and group_id: what names a group."""


@dataclass(frozen=True)
class Filter:
    """All conditions must hold; None and "" ask for nothing.

    `scorer` is a scorer's name or "reward"; `least` and `most` bound its score, `status` is its status, or that of any
    scorer if it is "reward". `text` is a part of the completion, as it is written.
    """

    run: str | None = None
    first_step: int | None = None
    last_step: int | None = None
    scorer: str = REWARD
    least: float | None = None
    most: float | None = None
    status: str | None = None
    text: str = ""

    def where(self) -> tuple[str, list[Any]]:
        """An SQL condition and its parameters."""
        parts: list[tuple[str, list[Any], bool]] = [
            ("run_id = ?", [self.run], self.run is not None),
            ("step >= ?", [self.first_step], self.first_step is not None),
            ("step <= ?", [self.last_step], self.last_step is not None),
            *self._scores(),
            ("contains(completion, ?)", [self.text], bool(self.text)),
        ]
        used = [(condition, parameters) for condition, parameters, is_asked in parts if is_asked]
        condition = " AND ".join(condition for condition, _ in used) or "true"
        return condition, [value for _, parameters in used for value in parameters]

    def _scores(self) -> list[tuple[str, list[Any], bool]]:
        least = float("-inf") if self.least is None else self.least
        most = float("inf") if self.most is None else self.most
        is_bounded = self.least is not None or self.most is not None
        name = self.scorer
        if name == REWARD:
            return [
                ("reward BETWEEN ? AND ?", [least, most], is_bounded),
                ("list_contains(list_transform(scorers, lambda s: s.status), ?)", [self.status], bool(self.status)),
            ]
        return [
            (f"len(list_filter(scorers, lambda s: {condition})) > 0", [name, *values], is_asked)
            for condition, values, is_asked in (
                ("s.name = ? AND s.score BETWEEN ? AND ?", [least, most], is_bounded),
                ("s.name = ? AND s.status = ?", [self.status], bool(self.status)),
            )
        ]


@dataclass(frozen=True)
class FoundGroup:
    """A group with completions that match: how many do, of how many, and its best reward (None if it has none)."""

    key: Key
    matching: int
    of: int
    best: float | None


@dataclass(frozen=True)
class Found:
    """The first MOST_GROUPS groups, latest step first, and how many groups and completions match in all."""

    groups: tuple[FoundGroup, ...]
    all_groups: int
    all_completions: int


def find(store: Store, wanted: Filter) -> Found:
    """The groups that hold a completion that the filter lets through."""
    condition, parameters = wanted.where()
    rows = store.query(
        f"""
        SELECT run_id, step, group_id, count(*) AS matching, max("of") AS of, max(reward) AS best,
               count(*) OVER () AS all_groups, sum(count(*)) OVER () AS all_completions
        FROM completions WHERE {condition}
        GROUP BY run_id, step, group_id ORDER BY step DESC, group_id LIMIT {MOST_GROUPS}
        """,
        parameters,
    )
    groups = tuple(
        FoundGroup((row.run_id, int(row.step), row.group_id), int(row.matching), int(row.of), number(row.best))
        for row in rows.itertuples()
    )
    if not groups:
        return Found((), 0, 0)
    return Found(groups, int(rows.all_groups[0]), int(rows.all_completions[0]))


@dataclass(frozen=True)
class ScorerSays:
    """What one scorer said of one completion. `extra` is what its function logged beside the score."""

    name: str
    weight: float
    score: float | None
    status: str
    message: str
    extra: dict[str, Any]


@dataclass(frozen=True)
class ShownCompletion:
    """One completion of a group; what a trainer alone knows is None where a server wrote the record."""

    index: int
    text: str
    reward: float | None
    scorers: tuple[ScorerSays, ...]
    advantage: float | None
    size: int
    truncated: bool | None
    dropped: bool | None


@dataclass(frozen=True)
class ShownGroup:
    """A prompt, its columns as JSON, and its completions in order of reward, those without one last."""

    key: Key
    prompt: str
    columns: str
    completions: tuple[ShownCompletion, ...]


def group_of(store: Store, key: Key) -> ShownGroup | None:
    """One group; None if it is no longer recorded. Of a group that was recorded twice, one record is shown."""
    rows = store.query(
        """
        SELECT DISTINCT ON ("index") * FROM completions WHERE run_id = ? AND step = ? AND group_id = ?
        ORDER BY "index"
        """,
        key,
    ).to_dict("records")
    if not rows:
        return None
    shown = [_completion(row) for row in rows]
    shown.sort(key=lambda one: (one.reward is None, -(one.reward or 0.0), one.index))
    return ShownGroup(key, rows[0]["prompt"], rows[0]["columns"], tuple(shown))


def _completion(row: dict[str, Any]) -> ShownCompletion:
    scorers = tuple(
        ScorerSays(
            said["name"], said["weight"], number(said["score"]), said["status"], said["message"] or "", _extra(said)
        )
        for said in row["scorers"]
    )
    return ShownCompletion(
        int(row["index"]),
        row["completion"],
        number(row["reward"]),
        scorers,
        number(row["advantage"]),
        int(row["size"]),
        _known(row["truncated"]),
        _known(row["dropped"]),
    )


def _extra(said: dict[str, Any]) -> dict[str, Any]:
    return json.loads(said["extra"]) if said["extra"] else {}


def number(value: Any) -> float | None:
    """A float; None for what pandas says is missing."""
    return None if value is None or math.isnan(value) else float(value)


def _known(value: Any) -> bool | None:
    return None if pandas.isna(value) else bool(value)


def scorer_names(store: Store) -> list[str]:
    """Of all records, by name."""
    sql = "SELECT DISTINCT unnest(list_transform(scorers, lambda s: s.name)) AS name FROM completions ORDER BY name"
    return list(store.query(sql).name)


def run_names(store: Store) -> list[str]:
    """The runs that are recorded."""
    return list(store.query("SELECT DISTINCT run_id FROM completions ORDER BY run_id").run_id)


def step_range(store: Store) -> tuple[int, int] | None:
    """The first and the last recorded step; None if nothing is recorded."""
    sql = "SELECT unnest([a, b]) AS step FROM (SELECT min(step) AS a, max(step) AS b FROM completions)"
    table = store.query(sql)
    steps = [int(step) for step in table.step.dropna()]
    return (steps[0], steps[1]) if steps else None
