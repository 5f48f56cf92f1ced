"""Signs of reward hacking, and what they were computed from."""

from __future__ import annotations

import pandas
import streamlit

from reward_server.view import charts, filters
from reward_server.view.context import Context
from reward_server.view.findings import Findings, examine, held_out_metrics, opposed
from reward_server.view.sample import Ranges
from reward_server.view.texts import line_of, shown

_NOTHING = "nothing"
_ABOUT = (
    "A sign alone accuses nobody: it is marked only where the reward rose from the early steps to the late ones, and "
    "what you trust did not."
)


def show(context: Context) -> None:
    streamlit.header("Hacking")
    if context.steps is None:
        streamlit.info("There are no records among the given files.")
        return
    ranges = _ranges(*context.steps)
    trusted = _trusted(context)
    found: Findings = context.ask(examine, context.run, ranges, trusted)
    streamlit.text(shown(found.verdict.sentence))
    if found.drawn < found.of:
        streamlit.text(f"From a sample of {found.drawn:,} of {found.of:,} completions, in whole groups.")
    _signs(found)
    _phrases(found)
    _lengths(found)
    if len(found.agreements):
        streamlit.subheader("Agreement between scorers within groups")
        streamlit.altair_chart(charts.lines(found.agreements, "agreement", "pair", "Spearman's ρ"))
    _opposed(context)
    _repeats(found)


def _ranges(first: int, last: int) -> Ranges:
    """The two ranges of steps, from the URL or the first and the last quarter."""
    streamlit.text(_ABOUT)
    if first == last:
        return Ranges.of(first, last)
    default = Ranges.of(first, last)
    left, right = streamlit.columns(2)
    early = left.slider("Early steps", first, last, default.early, key="early", bind="query-params")
    late = right.slider("Late steps", first, last, default.late, key="late", bind="query-params")
    return Ranges(early, late)


def _trusted(context: Context) -> str | None:
    options = [_NOTHING, *context.ask(filters.scorer_names), *held_out_metrics(context.store)]
    chosen = streamlit.selectbox(
        "What do you trust? It should rise when the reward does",
        options,
        key="trusted",
        format_func=line_of,
        bind="query-params",
    )
    return None if chosen == _NOTHING else chosen


def _signs(found: Findings) -> None:
    streamlit.subheader("Signs")
    table = pandas.DataFrame(
        [
            {"": "⚑" if s.is_marked else "", "sign": s.kind, "of": line_of(s.about), "early": s.early, "late": s.late}
            for s in found.signs
        ]
    )
    streamlit.dataframe(table.dropna(subset=["early", "late"], how="all"), hide_index=True)
    marked = [sign for sign in found.signs if sign.is_marked]
    if marked:
        lines = [f"⚑ {s.kind}: {line_of(s.about)} ({s.early:.2f} → {s.late:.2f})" for s in marked]
        streamlit.code("\n".join(lines), language=None, wrap_lines=True)


def _phrases(found: Findings) -> None:
    streamlit.subheader("Phrases that spread among the best-scored completions")
    if not found.phrases:
        streamlit.text("There are none.")
        return
    rows = [{"phrase": line_of(p.text), "z": p.z, "early": p.early, "late": p.late} for p in found.phrases]
    streamlit.dataframe(pandas.DataFrame(rows), hide_index=True)


def _lengths(found: Findings) -> None:
    streamlit.subheader("Scores against length")
    left, right = streamlit.columns(2)
    names = list(found.scatters)
    name = left.selectbox("Scorer", names, key="against", format_func=line_of, bind="query-params")
    if name is not None and len(found.scatters[name]):
        left.altair_chart(charts.scatter(found.scatters[name]))
    if len(found.lengths):
        right.text("Spearman's ρ with length, over steps")
        right.altair_chart(charts.lines(found.lengths, "correlation", "scorer", "ρ"))


def _opposed(context: Context) -> None:
    names = context.ask(filters.scorer_names)
    if len(names) < 2:
        return
    streamlit.subheader("High by one scorer, low by another")
    left, right = streamlit.columns(2)
    high = left.selectbox("High by", names, key="high", format_func=line_of, bind="query-params")
    others = [name for name in names if name != high]
    low = right.selectbox("Low by", others, key="low", format_func=line_of, bind="query-params")
    table = context.ask(opposed, context.run, high, low)
    columns = ["step", "group_id", "index", "high", "low", "text"]
    streamlit.dataframe(_readable(table[columns]), hide_index=True)


def _repeats(found: Findings) -> None:
    streamlit.subheader("Completions that repeat in the late steps")
    if len(found.repeats):
        streamlit.dataframe(_readable(found.repeats), hide_index=True)
    else:
        streamlit.text("There are none.")


def _readable(table: pandas.DataFrame) -> pandas.DataFrame:
    """With texts as cells can show them."""
    texts = {name: [line_of(str(text)) for text in table[name]] for name in ("text", "group_id") if name in table}
    return table.assign(**texts)
