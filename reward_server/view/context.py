"""What a view is given: the store, the run and steps that are looked at, and a cache of the store's answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import streamlit

from reward_server.view.store import Store


@dataclass(frozen=True)
class Context:
    """`run` is None for all runs; `steps` are the first and last recorded step, None if nothing is recorded."""

    store: Store
    view: str
    run: str | None
    steps: tuple[int, int] | None

    def ask(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """See `ask`."""
        return ask(self.store, function, *arguments)


def ask(store: Store, function: Callable[..., Any], *arguments: Any) -> Any:
    """A pure function of the store, computed again only when there is something new in the files."""
    return _answer(function, store, f"{function.__module__}.{function.__qualname__}", store.fingerprint, arguments)


@streamlit.cache_data(max_entries=200, show_spinner=False)
def _answer(_function: Callable[..., Any], _store: Store, name: str, fingerprint: Any, arguments: Any) -> Any:
    return _function(_store, *arguments)
