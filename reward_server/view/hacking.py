"""Numbers that move when a reward is hacked: scores against length, scorers against one another, repeats, phrases.

Pure: a sample in, tables out. Accuses nobody; when something is marked is `signs`' to say.
"""

from __future__ import annotations

import itertools

import numpy
import pandas

from reward_server.view.phrases import Phrase, growing_phrases
from reward_server.view.sample import DRAWN, KEY, Ranges, Sample
from reward_server.view.store import Store

_LEAST_COMPLETIONS = 8
_MOST_TEXTS = 1000
_BEST = 0.75


def correlation(first: pandas.Series, second: pandas.Series) -> float:
    """Spearman's ρ of what both know; NaN where one side is constant, or fewer than 8 are known."""
    known = first.notna() & second.notna()
    if known.sum() < _LEAST_COMPLETIONS:
        return float("nan")
    a, b = first[known].rank().to_numpy(), second[known].rank().to_numpy()
    if a.std() == 0 or b.std() == 0:
        return float("nan")
    return float(numpy.corrcoef(a, b)[0, 1])


def length_correlations(sample: Sample, width: int) -> pandas.DataFrame:
    """step, scorer ("reward" too), correlation of its scores with the length of the completions."""
    points = []
    for step, rows in sample.rows.groupby(sample.rows.step // width * width):
        for name, scores in _named_scores(sample, rows.index):
            points.append({"step": step, "scorer": name, "correlation": correlation(scores, rows["size"])})
    return pandas.DataFrame(points, columns=["step", "scorer", "correlation"]).dropna()


def length_correlation(sample: Sample, name: str) -> float:
    """Of one scorer, over the whole sample."""
    return correlation(_scores_of(sample, name), sample.rows["size"])


def agreements(sample: Sample, width: int) -> pandas.DataFrame:
    """step, pair ("a, b"), agreement: the mean over groups of the rank correlation of two scorers within the group."""
    tables = []
    for first, second in itertools.combinations(sample.scorers, 2):
        by_group = group_agreement(sample, first, second)
        mean = by_group.groupby(by_group.step // width * width).agreement.mean().reset_index()
        tables.append(mean.assign(pair=f"{first}, {second}"))
    columns = ["step", "pair", "agreement"]
    return pandas.concat(tables)[columns] if tables else pandas.DataFrame(columns=columns)


def group_agreement(sample: Sample, first: str, second: str) -> pandas.DataFrame:
    """step, agreement: Spearman's ρ within each group in which both scorers tell completions apart."""
    table = pandas.DataFrame(
        {"step": sample.rows.step, "group": sample.rows.group, "a": sample.scores[first], "b": sample.scores[second]}
    ).dropna()
    by_group = table.groupby("group")
    ranks = by_group[["a", "b"]].rank()
    centred = ranks - ranks.groupby(table.group).transform("mean")
    sums = (
        pandas.DataFrame({"ab": centred.a * centred.b, "aa": centred.a**2, "bb": centred.b**2, "group": table.group})
        .groupby("group")[["ab", "aa", "bb"]]
        .sum()
    )
    told = sums[(sums.aa > 0) & (sums.bb > 0)]
    agreement = told.ab / numpy.sqrt(told.aa * told.bb)
    return pandas.DataFrame({"step": by_group.step.first().loc[told.index], "agreement": agreement})


def scatter(sample: Sample, name: str, most: int = 2000) -> pandas.DataFrame:
    """step, length, score of some completions, the same each time."""
    table = pandas.DataFrame(
        {"step": sample.rows.step, "length": sample.rows["size"], "score": _scores_of(sample, name)}
    ).dropna()
    return table.sample(min(most, len(table)), random_state=0)


def opposed_share(sample: Sample, bounds: Sample, high: str, low: str) -> float:
    """The share of completions that are in the top quarter of one scorer and the bottom quarter of another.

    The quarters are those of `bounds`, so that two ranges of steps are measured alike.
    """
    known = sample.scores[[high, low]].dropna()
    if known.empty:
        return float("nan")
    highs, lows = bounds.scores[high], bounds.scores[low]
    is_high = (known[high] >= highs.quantile(0.75)) & (known[high] > highs.min())
    is_low = (known[low] <= lows.quantile(0.25)) & (known[low] < lows.max())
    return float((is_high & is_low).mean())


def opposed(store: Store, sample: Sample, high: str, low: str, most: int = 50) -> pandas.DataFrame:
    """Completions with the largest gap between their ranks by two scorers: KEY, high, low (the scores), text."""
    known = sample.scores[[high, low]].dropna()
    gap = (known[high].rank(pct=True) - known[low].rank(pct=True)).sort_values(ascending=False)
    chosen = gap[gap > 0].head(most).index
    rows = sample.rows.loc[chosen, KEY].assign(high=known[high].loc[chosen], low=known[low].loc[chosen])
    texts = store.query(
        """
        SELECT run_id, step, group_id, "index", any_value(completion) AS text FROM completions
        WHERE list_contains(?::BIGINT[], step) AND list_contains(?::VARCHAR[], group_id) GROUP BY ALL
        """,
        [sorted({int(step) for step in rows.step}), sorted(set(rows.group_id))],
    )
    return rows.merge(texts, on=KEY)


def repeats(store: Store, sample: Sample, span: tuple[int, int], most: int = 50) -> pandas.DataFrame:
    """Completions that occur more than once: text, count, groups in which they do, mean reward."""
    return store.query(
        f"""
        SELECT completion AS text, count(*) AS count, count(DISTINCT (run_id, step, group_id)) AS groups,
               avg(reward) AS reward
        FROM completions WHERE {DRAWN} AND step BETWEEN ? AND ?
        GROUP BY completion HAVING count(*) > 1 ORDER BY count DESC, text LIMIT {most}
        """,
        [*sample.drawn, *span],
    )


def repeated_share(store: Store, sample: Sample, span: tuple[int, int]) -> float:
    """The share of completions that are the same, letter by letter, as another one of these steps."""
    table = store.query(
        f"""
        SELECT sum(n) FILTER (n > 1) / sum(n) AS share FROM (
            SELECT count(*) AS n FROM completions WHERE {DRAWN} AND step BETWEEN ? AND ? GROUP BY completion
        )
        """,
        [*sample.drawn, *span],
    )
    return float(table.share.fillna(0.0)[0])


def phrases(store: Store, sample: Sample, ranges: Ranges) -> list[Phrase]:
    """What became more common among the best-scored completions, from the early range to the late one."""
    return growing_phrases(_best_texts(store, sample, ranges.early), _best_texts(store, sample, ranges.late))


def _best_texts(store: Store, sample: Sample, span: tuple[int, int]) -> list[str]:
    """Of the completions with the best quarter of rewards in these steps, at most so many."""
    table = store.query(
        f"""
        WITH chosen AS (
            SELECT completion, reward, hash(run_id, step, group_id, "index") AS place FROM completions
            WHERE {DRAWN} AND step BETWEEN ? AND ? AND reward IS NOT NULL
        )
        SELECT completion FROM chosen WHERE reward >= (SELECT quantile_cont(reward, {_BEST}) FROM chosen)
        ORDER BY place LIMIT {_MOST_TEXTS}
        """,
        [*sample.drawn, *span],
    )
    return list(table.completion)


def _named_scores(sample: Sample, index: pandas.Index) -> list[tuple[str, pandas.Series]]:
    return [("reward", sample.rows.reward.loc[index]), *((n, sample.scores[n].loc[index]) for n in sample.scorers)]


def _scores_of(sample: Sample, name: str) -> pandas.Series:
    return sample.scores.get(name, sample.rows.reward)
