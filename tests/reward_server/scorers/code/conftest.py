"""A scorer in its sandbox, which a module of tests shares."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from reward_server.scorers.code import CodeScorer
from tests.support.code import loaded
from tests.support.sandboxes import LACK


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scorer() -> AsyncIterator[CodeScorer]:
    if LACK is not None:
        pytest.skip(LACK)
    scorer = await loaded()
    yield scorer
    await scorer.close()
