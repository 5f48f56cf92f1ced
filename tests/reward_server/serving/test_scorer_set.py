"""A set of scorers chooses, runs them side by side and joins their answers; each group goes down one chain once."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from reward_server.config import config_from_mapping
from reward_server.errors import InvalidGroupError
from reward_server.observability.metrics import Metrics
from reward_server.serving.scorer_set import ScorerSet
from tests.support.builders import make_group
from tests.support.observed import Page

SHORT = {"type": "length", "name": "short", "max": 1}
LONG = {"type": "length", "name": "long", "min": 2}
BOTH = {"type": "composite", "name": "both", "parts": [SHORT, LONG]}


@asynccontextmanager
async def loaded(*scorers: dict[str, Any], **config: Any) -> AsyncIterator[ScorerSet]:
    made = ScorerSet(config_from_mapping({"scorers": list(scorers), **config}))
    await made.load()
    try:
        yield made
    finally:
        await made.close()


async def test_answers_come_in_the_order_of_the_configuration_whatever_order_is_asked_for() -> None:
    async with loaded(SHORT, LONG) as scorers:
        for chosen in ((), ("long", "short")):
            scores = await scorers.score(make_group(["a", "bb"], scorers=chosen))
            columns = {each.name: [score.value for score in each.scores] for each in scores.scorers}
            assert columns == {"short": [1.0, 0.0], "long": [0.0, 1.0]}
            assert list(columns) == ["short", "long"]
        only = await scorers.score(make_group(["a"], scorers=("long",)))
        assert [each.name for each in only.scorers] == ["long"]
        with pytest.raises(InvalidGroupError, match=r"there is no scorer 'lon' on this server.* it has short, long"):
            scorers.admit(make_group(["a"], scorers=("lon",)))


async def test_a_score_from_the_cache_is_counted_like_any_other() -> None:
    metrics = Metrics()
    async with loaded(SHORT, cache=True) as scorers:
        scorers.observe(metrics)
        for _ in range(2):
            await scorers.score(make_group(["a", "bb"]))
        metrics.follow(scorers.counters)
        seen = Page(metrics.text())
    assert seen("scores_total", scorer="short", status="OK") == 4
    assert seen("scorer_wait_seconds_count", scorer="short") == 2
    assert seen("cache_hits_total", scorer="short") == seen("cache_misses_total", scorer="short") == 2


async def test_the_parts_of_a_composite_are_counted_as_the_composite() -> None:
    metrics = Metrics()
    async with loaded(BOTH) as scorers:
        scorers.observe(metrics)
        await scorers.score(make_group(["a", "bb"]))
        seen = Page(metrics.text())
    assert seen("scores_total", scorer="both", status="OK") == 2
    assert "short" not in seen.label_values()
