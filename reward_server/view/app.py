"""What is on the page whichever view is open: the token, the choice of view and run, what is wrong with the files.

Owns the process's store. The state of every widget is in the URL, so that a link to a view
can be pasted; the token never is.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import streamlit

from reward_server.view import filters
from reward_server.view.access import is_token
from reward_server.view.context import Context, ask
from reward_server.view.sources import Sources
from reward_server.view.store import Store
from reward_server.view.texts import line_of, shown
from reward_server.view.views import compare, groups, hacking, overview

VIEWS: dict[str, Callable[[Context], None]] = {
    "overview": overview.show,
    "hacking": hacking.show,
    "groups": groups.show,
    "compare": compare.show,
}
_EVERY_RUN = "all runs"
_ALL = "all"
_WRONG_TOKEN_DELAY_S = 1.0


@dataclass
class Process:
    """What this process shows; set before Streamlit starts. All sessions share one store."""

    sources: Sources
    token: str | None = None
    stores: dict[str, Store] = field(default_factory=dict)

    def store(self, name: str = _ALL) -> Store:
        """Of all records, or of one of the given files or folders alone."""
        if name not in self.stores:
            self.stores[name] = Store(self.sources if name == _ALL else self.sources.only(name))
        return self.stores[name]


_process: list[Process] = []


def configure(process: Process) -> None:
    """Says what to show. Opens the files, so that the first visitor need not wait."""
    _process[:] = [process]
    process.store()


def show() -> None:
    """One run of the page's script."""
    (process,) = _process
    streamlit.set_page_config(page_title="rewards", layout="wide")
    if not _is_let_in(process.token):
        return
    with streamlit.sidebar:
        context = _chosen(process)
    for problem in context.store.problems[:5]:
        streamlit.warning("A file is left out, or not whole:", icon=None)
        streamlit.text(shown(problem))
    if context.steps is None and not process.sources.runs:
        streamlit.info("Nothing is recorded yet. Parquet parts appear after some groups or seconds; then read again.")
        return
    VIEWS[context.view](context)


def _chosen(process: Process) -> Context:
    """The sidebar: view, run, and reading again."""
    view = streamlit.radio("View", list(VIEWS), key="view", bind="query-params")
    store = process.store(_records(process.sources.names))
    store.refresh()
    runs = ask(store, filters.run_names)
    options = [_EVERY_RUN, *(run for run in runs if run != _EVERY_RUN)]
    chosen = streamlit.selectbox("Run", options, key="run", format_func=line_of, bind="query-params")
    streamlit.button("Read what is new")
    steps = ask(store, filters.step_range)
    run = None if chosen == _EVERY_RUN else chosen
    return Context(store, process.sources, view or "overview", run, steps)


def _records(names: list[str]) -> str:
    """Which of several files to look at: those of two configurations hold the same completions."""
    if len(names) < 2:
        return _ALL
    return (
        streamlit.selectbox("Records", [_ALL, *names], key="records", format_func=line_of, bind="query-params") or _ALL
    )


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
