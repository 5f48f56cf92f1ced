"""Everything that the Hacking view shows, computed at once from one sample. Pure: a store in, tables out."""

from __future__ import annotations

from dataclasses import dataclass

import pandas

from reward_server.view import hacking
from reward_server.view.overview import bin_width, metrics_of
from reward_server.view.phrases import Phrase
from reward_server.view.sample import Ranges, draw
from reward_server.view.signs import Sign, Verdict, change_of, change_of_metric, signs, verdict
from reward_server.view.store import Store

METRIC = "held out: "
"""What the name of a trainer's metric begins with among the choices of what to trust."""


@dataclass(frozen=True)
class Findings:
    """`drawn` of `of` completions were looked at; the tables are those of `hacking`'s functions."""

    drawn: int
    of: int
    verdict: Verdict
    signs: tuple[Sign, ...]
    phrases: tuple[Phrase, ...]
    lengths: pandas.DataFrame
    agreements: pandas.DataFrame
    scatters: dict[str, pandas.DataFrame]
    repeats: pandas.DataFrame


def held_out_metrics(store: Store) -> list[str]:
    """What a trainer's evaluations logged of rewards, in the runs that were given."""
    names = [name for run in store.sources.runs for name in metrics_of(run).name.unique()]
    return [f"{METRIC}{name}" for name in dict.fromkeys(names) if name.startswith("eval_") and "reward" in name]


def examine(store: Store, run: str | None, ranges: Ranges, trusted: str | None) -> Findings:
    """`trusted` is a scorer's name, or METRIC and that of a metric; None if nothing is trusted."""
    sample = draw(store, run)
    trusted_change = None
    if trusted is not None and trusted.startswith(METRIC):
        metrics = pandas.concat([metrics_of(path) for path in store.sources.runs])
        trusted_change = change_of_metric(metrics, ranges, trusted.removeprefix(METRIC))
    elif trusted is not None:
        trusted_change = change_of(sample, ranges, trusted)
    found = verdict(change_of(sample, ranges, "reward"), trusted, trusted_change)
    phrases = hacking.phrases(store, sample, ranges)
    width = bin_width(int(sample.rows.step.min()), int(sample.rows.step.max())) if len(sample.rows) else 1
    return Findings(
        len(sample.rows),
        sample.of,
        found,
        tuple(signs(store, sample, ranges, found, trusted, phrases)),
        tuple(phrases),
        hacking.length_correlations(sample, width),
        hacking.agreements(sample, width),
        {name: hacking.scatter(sample, name) for name in ["reward", *sample.scorers]},
        hacking.repeats(store, sample, ranges.late),
    )


def opposed(store: Store, run: str | None, high: str, low: str) -> pandas.DataFrame:
    """Completions that one scorer ranks high and another one low."""
    return hacking.opposed(store, draw(store, run), high, low)
