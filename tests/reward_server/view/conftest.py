"""Records of a hacked run in both forms, written once by a real server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from reward_server.launch import ServerProcess, launch_server
from reward_server.view.sources import sources_of
from reward_server.view.store import Store
from tests.support.hacked import hacked_groups, record


def _serve(*scorers: dict[str, Any], **config: Any) -> ServerProcess:
    return launch_server({"scorers": list(scorers), "workers": 1, **config}, timeout_s=60)


@pytest.fixture(scope="session")
def hacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `parts`, the Parquet form, and `lines.jsonl`."""
    folder = tmp_path_factory.mktemp("hacked")
    for name in ("parts", "lines.jsonl"):
        record(_serve, folder / name, hacked_groups())
    return folder


@pytest.fixture
def open_store() -> Iterator[Callable[..., Store]]:
    """Stores over the given paths; they are closed with the test."""
    stores: list[Store] = []

    def opened(*paths: Path) -> Store:
        stores.append(Store(sources_of(paths)))
        return stores[-1]

    yield opened
    for store in stores:
        store.close()
