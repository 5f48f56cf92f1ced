"""Fixtures of the sandbox's tests: runners that a module shares, and the folder where new ones have theirs."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from reward_server.sandbox.pool import Runners
from tests.support.sandboxes import plan_of


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def runners() -> AsyncIterator[Runners]:
    runners = Runners(plan_of(), 2)
    yield runners
    await runners.close()


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where new runners have their folders, and nobody else."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path
