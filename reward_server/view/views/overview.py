"""Reward, scores, failures, lengths and wait over steps."""

from __future__ import annotations

from collections.abc import Callable

import altair
import pandas
import streamlit

from reward_server.view import charts, overview
from reward_server.view.context import Context
from reward_server.view.texts import line_of

_COLUMNS = 2
Drawing = tuple[str, altair.Chart | altair.LayerChart]


def show(context: Context) -> None:
    streamlit.header("Overview")
    drawings = _of_records(context) if context.steps else []
    for run in context.store.sources.runs:
        drawings += _of_run(overview.metrics_of(run), run.name)
    columns = streamlit.columns(_COLUMNS)
    for number, (title, chart) in enumerate(drawings):
        with columns[number % _COLUMNS]:
            streamlit.text(title)
            streamlit.altair_chart(chart)


def _of_records(context: Context) -> list[Drawing]:
    assert context.steps is not None
    width = overview.bin_width(*context.steps)

    def ask(function: Callable[..., pandas.DataFrame]) -> pandas.DataFrame:
        return context.ask(function, context.run, width)

    scores = ask(overview.scores_over_steps)
    drawings: list[Drawing] = [
        (f"{line_of(name)}: mean and deciles", charts.deciles(table, "score"))
        for name, table in scores.groupby("name", sort=False)
    ]
    lengths = ask(overview.lengths_over_steps)
    drawings.append(("length: mean and deciles", charts.deciles(lengths, "tokens, or characters")))
    groups = ask(overview.groups_over_steps)
    drawings.append(("share of groups without signal", charts.lines(groups, "without_signal", None, "share")))
    failures = ask(overview.failures_over_steps)
    if len(failures):
        named = failures.assign(name=failures.scorer + ": " + failures.status)
        drawings.append(("failed scores by kind", charts.lines(named, "share", "name", "share")))
    if lengths.truncated.notna().any():
        drawings.append(("share of completions that were cut off", charts.lines(lengths, "truncated", None, "share")))
    waits = groups.melt("step", ["queued_s", "compute_s"], "name", "seconds")
    drawings.append(("the service, seconds a group", charts.lines(waits, "seconds", "name", "seconds")))
    return drawings


def _of_run(metrics: pandas.DataFrame, run: str) -> list[Drawing]:
    """What only the trainer knows: how long it waited, and what was held out."""
    chosen = {
        "wait for rewards, seconds a step": metrics.name == "reward/exposed_wait_s",
        "held out": metrics.name.str.startswith("eval_") & metrics.name.str.contains("reward", regex=False),
        "reward, as the trainer logged it": metrics.name == "reward",
        "completions' mean length, tokens": metrics.name == "completions/mean_length",
        "share of completions that were cut off": metrics.name == "completions/clipped_ratio",
    }
    return [
        (f"{line_of(run)}: {title}", charts.lines(metrics[rows], "value", "name", ""))
        for title, rows in chosen.items()
        if rows.any()
    ]
