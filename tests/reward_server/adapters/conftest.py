"""A reward server for the tests of adapters: `graded` with weight 2, and `rank`, which compares a group."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from reward_server.adapters.service import Service
from reward_server.launch import launch_server

GRADED = Path(__file__).parents[2] / "support" / "graded.py"
SCORERS = [
    {"type": "function", "name": "graded", "function": f"{GRADED}:graded", "weight": 2.0},
    {"type": "group_function", "name": "rank", "function": f"{GRADED}:rank"},
]


@pytest.fixture(scope="package")
def endpoint() -> Iterator[str]:
    with launch_server({"scorers": SCORERS, "workers": 1}, listen="127.0.0.1:0", timeout_s=60) as server:
        yield server.endpoint


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No settings of an earlier test, and no connection either."""
    for name in [name for name in os.environ if name.startswith("REWARD_")]:
        monkeypatch.delenv(name)
    yield
    Service.of.cache_clear()


@pytest.fixture
def environment(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The server's endpoint in the environment, the column `answer` from the trainer's `label`."""
    monkeypatch.setenv("REWARD_ENDPOINT", endpoint)
    monkeypatch.setenv("REWARD_COLUMNS", "answer=label")
    return monkeypatch
