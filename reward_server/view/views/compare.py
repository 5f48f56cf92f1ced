"""Two record files of the same completions, beside one another."""

from __future__ import annotations

import pandas
import streamlit

from reward_server.errors import InvalidGroupError
from reward_server.view.comparing import MOST_GROUPS, Compared, compared
from reward_server.view.context import Context
from reward_server.view.texts import line_of, shown


def show(context: Context) -> None:
    streamlit.header("Compare")
    names = context.sources.names
    if len(names) < 2:
        streamlit.info("Give two record files of the same completions; reward-server rescore writes the second one.")
        return
    left, right = streamlit.columns(2)
    before = left.selectbox("Before", names, key="before", format_func=line_of, bind="query-params")
    after = right.selectbox("After", names, index=1, key="after", format_func=line_of, bind="query-params")
    if before is None or after is None or before == after:
        streamlit.text("Choose two different files.")
        return
    try:
        told: Compared = context.ask(compared, before, after)
    except InvalidGroupError as error:
        streamlit.text(shown(str(error)))
        return
    _show(told)


def _show(told: Compared) -> None:
    cut = f" Only the first {MOST_GROUPS:,} groups of each file were read." if told.is_cut else ""
    streamlit.text(f"{told.groups:,} groups are in both files.{cut}")
    if not told.groups:
        return
    tau = "-" if told.tau is None else f"{told.tau:.3f}"
    turned = "-" if told.turned is None else f"{told.turned:.1%}"
    streamlit.text(f"Kendall's τ of the rewards within groups: {tau}")
    streamlit.text(f"Completions whose advantage changes its sign: {turned}")
    streamlit.dataframe(_readable(told.spreads), hide_index=True)
    if len(told.differing):
        streamlit.subheader("Groups that differ most")
        streamlit.dataframe(_readable(told.differing), hide_index=True)
        streamlit.dataframe(_readable(told.rewards), hide_index=True)


def _readable(table: pandas.DataFrame) -> pandas.DataFrame:
    names = [name for name in ("scorer", "group", "text") if name in table]
    return table.assign(**{name: [line_of(str(text)) for text in table[name]] for name in names})
