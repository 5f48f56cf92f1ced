"""A run at a glance: reward and scores, groups without signal, failures, length, truncation and wait over steps.

Pure: a store in, tables out. Where there are more than MOST_POINTS steps, each point is the mean of several.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas

from reward_server.view.sources import METRICS_FILE
from reward_server.view.store import Store

MOST_POINTS = 200
_SAME_REWARD = 1e-9
DECILES = [f"d{tenth}0" for tenth in range(1, 10)]
"""Names of the columns of the nine deciles."""
_QUANTILES = "quantile_cont({column}, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9])"


def bin_width(first: int, last: int) -> int:
    """Steps in a point of a chart."""
    return max(1, -(-(last - first + 1) // MOST_POINTS))


def scores_over_steps(store: Store, run: str | None, width: int) -> pandas.DataFrame:
    """step, name ("reward" first, then scorers), mean, count, d10 … d90."""
    table = store.query(
        f"""
        WITH chosen AS (SELECT step // ? * ? AS step, reward, scorers FROM completions WHERE ? IS NULL OR run_id = ?),
        said AS (
            SELECT step, 'reward' AS name, true AS is_reward, reward AS score FROM chosen
            UNION ALL
            SELECT step, s.name, false, s.score
            FROM (SELECT step, unnest(list_transform(scorers, lambda s: {{'name': s.name, 'score': s.score}})) AS s
                  FROM chosen)
        )
        SELECT step, name, is_reward, avg(score) AS mean, count(score) AS count,
               {_QUANTILES.format(column="score")} AS deciles
        FROM said GROUP BY step, name, is_reward HAVING count(score) > 0 ORDER BY is_reward DESC, name, step
        """,
        [width, width, run, run],
    )
    return _spread(table)


def lengths_over_steps(store: Store, run: str | None, width: int) -> pandas.DataFrame:
    """step, mean, d10 … d90 of the length; truncated: the share of completions that were cut off, if it is known."""
    table = store.query(
        f"""
        SELECT step // ? * ? AS step, avg(size) AS mean, avg(truncated::INT) AS truncated,
               {_QUANTILES.format(column="size")} AS deciles
        FROM completions WHERE ? IS NULL OR run_id = ? GROUP BY 1 ORDER BY 1
        """,
        [width, width, run, run],
    )
    return _spread(table)


def groups_over_steps(store: Store, run: str | None, width: int) -> pandas.DataFrame:
    """step, without_signal: the share of groups in which all rewards are equal or missing, queued_s, compute_s."""
    return store.query(
        """
        WITH groups AS (
            SELECT step // ? * ? AS step, coalesce(max(reward) - min(reward), 0) <= ? AS flat,
                   max(queued_s) AS queued_s, max(compute_s) AS compute_s
            FROM completions WHERE ? IS NULL OR run_id = ? GROUP BY run_id, completions.step, group_id
        )
        SELECT step, avg(flat::INT) AS without_signal, avg(queued_s) AS queued_s, avg(compute_s) AS compute_s
        FROM groups GROUP BY step ORDER BY step
        """,
        [width, width, _SAME_REWARD, run, run],
    )


def failures_over_steps(store: Store, run: str | None, width: int) -> pandas.DataFrame:
    """step, scorer, status (INVALID, TIMEOUT or FAILED), count, share of the scorer's scores in that step."""
    return store.query(
        """
        WITH said AS (
            SELECT step // ? * ? AS step, unnest(list_transform(scorers, lambda s: {'n': s.name, 'st': s.status})) AS s
            FROM completions WHERE ? IS NULL OR run_id = ?
        ),
        counted AS (SELECT step, s.n AS scorer, s.st AS status, count(*) AS count FROM said GROUP BY ALL)
        SELECT *, count / sum(count) OVER (PARTITION BY step, scorer) AS share FROM counted
        QUALIFY status NOT IN ('OK', 'NOT_APPLICABLE') ORDER BY step, scorer, status
        """,
        [width, width, run, run],
    )


def _spread(table: pandas.DataFrame) -> pandas.DataFrame:
    """The list of deciles as nine columns."""
    lists = [list(values) for values in table.deciles]
    deciles = pandas.DataFrame(lists, columns=DECILES, index=table.index, dtype=float)
    return pandas.concat([table.drop(columns=["deciles"]), deciles], axis=1)


# ------------------------------------------------------------------------------------------------------- a run's folder


def metrics_of(run: Path) -> pandas.DataFrame:
    """What a trainer logged: step, name, value. Lines that are not whole or no objects are left out."""
    points = [
        {"step": int(log["step"]), "name": name, "value": float(value)}
        for log in _logs(run / METRICS_FILE)
        for name, value in log.items()
        if name not in ("step", "time") and isinstance(value, (int, float)) and not isinstance(value, bool)
    ]
    table = pandas.DataFrame(points, columns=["step", "name", "value"])
    return table.drop_duplicates(["step", "name"], keep="last")  # a resumed run logs its first steps again


def _logs(path: Path) -> Iterator[dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    for line in text.splitlines():
        try:
            log = json.loads(line)
        except ValueError:
            continue
        if isinstance(log, dict) and isinstance(log.get("step"), int):
            yield log
