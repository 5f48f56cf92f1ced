"""What is on the page whichever view is open: the token, the choice of view and run, what is wrong with the files.

Owns the process's store. The state of every widget is in the URL, so that a link to a view
can be pasted; the token never is.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import streamlit

from reward_server.view import filters
from reward_server.view.access import is_token
from reward_server.view.context import Context, ask
from reward_server.view.pages import compare, groups, hacking, overview
from reward_server.view.sources import Sources
from reward_server.view.store import Store
from reward_server.view.texts import line_of, shown

VIEWS: dict[str, Callable[[Context], None]] = {
    "overview": overview.show,
    "hacking": hacking.show,
    "groups": groups.show,
    "compare": compare.show,
}
_EVERY_RUN = "all runs"
_WRONG_TOKEN_DELAY_S = 1.0


@dataclass
class Process:
    """What this process shows; set before Streamlit starts. All sessions share one store."""

    sources: Sources
    token: str | None = None

    @cached_property
    def store(self) -> Store:
        return Store(self.sources)


_process: list[Process] = []


def configure(process: Process) -> None:
    """Says what to show. Opens the files, so that the first visitor need not wait."""
    _process[:] = [process]
    process.store.refresh()


def show() -> None:
    """One run of the page's script."""
    (process,) = _process
    streamlit.set_page_config(page_title="rewards", layout="wide")
    if not _is_let_in(process.token):
        return
    process.store.refresh()
    with streamlit.sidebar:
        context = _chosen(process)
    for problem in process.store.problems[:5]:
        streamlit.warning("A file is left out, or not whole:", icon=None)
        streamlit.text(shown(problem))
    if context.steps is None and not process.sources.runs:
        streamlit.info("Nothing is recorded yet. Parquet parts appear after some groups or seconds; then read again.")
        return
    VIEWS[context.view](context)


def _chosen(process: Process) -> Context:
    """The sidebar: view, run, and reading again."""
    store = process.store
    view = streamlit.radio("View", list(VIEWS), key="view", format_func=str.capitalize, bind="query-params")
    runs = ask(store, filters.run_names)
    options = [_EVERY_RUN, *(run for run in runs if run != _EVERY_RUN)]
    chosen = streamlit.selectbox("Run", options, key="run", format_func=line_of, bind="query-params")
    streamlit.button("Read what is new")
    steps = ask(store, filters.step_range)
    return Context(store, view or "overview", None if chosen == _EVERY_RUN else chosen, steps)


def _is_let_in(token: str | None) -> bool:
    """Asks for the token once a session. It leaves the URL at once, so that no link holds it."""
    given = streamlit.query_params.get("token", "")
    if "token" in streamlit.query_params:
        del streamlit.query_params["token"]
    if token is None or streamlit.session_state.get("is_let_in"):
        return True
    if not given:
        given = streamlit.text_input("Token", type="password")
    if given and is_token(given, token):
        streamlit.session_state["is_let_in"] = True
        streamlit.rerun()
    if given:
        time.sleep(_WRONG_TOKEN_DELAY_S)  # guessing takes its time
        streamlit.text("This is not the token.")
    else:
        streamlit.text("This page needs the token that its server was started with.")
    return False
