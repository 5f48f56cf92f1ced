"""What a view is given: the store, the run and steps that are looked at, and a cache of the store's answers."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import streamlit

from reward_server.view.sources import Sources
from reward_server.view.store import Store


@dataclass(frozen=True)
class Context:
    """`sources` is all that was given, `store` what is looked at of it.

    `run` is None for all runs; `steps` are the first and last recorded step, None if nothing is recorded."""

    store: Store
    sources: Sources
    view: str
    run: str | None
    steps: tuple[int, int] | None

    def ask(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """See `ask`."""
        return ask(self.store, function, *arguments)


def ask(store: Store, function: Callable[..., Any], *arguments: Any) -> Any:
    """A pure function of the store, computed again only when there is something new in the files."""
    return _answers()(function, store, f"{function.__module__}.{function.__qualname__}", store.fingerprint, arguments)


@functools.cache
def _answers() -> Callable[..., Any]:
    """Made when Streamlit runs: before that, it warns that its cache has nowhere to be."""
    return streamlit.cache_data(max_entries=200, show_spinner=False)(_answer)


def _answer(_function: Callable[..., Any], _store: Store, name: str, fingerprint: Any, arguments: Any) -> Any:
    # Streamlit takes an argument whose name begins with an underscore for no part of the key.
    return _function(_store, *arguments)
