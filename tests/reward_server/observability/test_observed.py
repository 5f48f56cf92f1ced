"""The outermost executor of a scorer counts its groups, those that end in an error or are cancelled included."""

from __future__ import annotations

import asyncio

import pytest

from reward_server.errors import InvalidGroupError
from reward_server.observability.metrics import Metrics
from reward_server.observability.observed import ObservedExecutor
from reward_server.scorers.base import Result
from tests.support.builders import make_group
from tests.support.observed import Page
from tests.support.tally import Tally, turns, values


async def test_a_group_is_counted_while_it_is_at_the_scorer_and_its_scores_when_they_are_there() -> None:
    metrics, tally = Metrics(), Tally(hold=True)
    running = asyncio.create_task(ObservedExecutor(tally, "s", metrics).run(make_group(["a", "bb"])))
    await turns()
    busy = Page(metrics.text())
    assert (busy("scorer_groups", scorer="s"), busy("scores_total", scorer="s", status="OK")) == (1, 0)
    tally.let_go.set()
    assert values(await running) == [1.0, 2.0]
    idle = Page(metrics.text())
    assert (idle("scorer_groups", scorer="s"), idle("scores_total", scorer="s", status="OK")) == (0, 2)
    assert idle("scorer_wait_seconds_sum", scorer="s") == 1.0
    assert idle("scorer_compute_seconds_sum", scorer="s") == 2.0


async def test_a_group_that_ends_without_scores_is_no_longer_at_the_scorer() -> None:
    def blames_the_group(_: list[str]) -> Result:
        raise InvalidGroupError("no")

    metrics = Metrics()
    with pytest.raises(InvalidGroupError):
        await ObservedExecutor(Tally(blames_the_group), "s", metrics).run(make_group(["a"]))
    cancelled = asyncio.create_task(ObservedExecutor(Tally(hold=True), "s", metrics).run(make_group(["a"])))
    await turns()
    cancelled.cancel()
    await asyncio.wait({cancelled})
    seen = Page(metrics.text())
    assert seen("scorer_groups", scorer="s") == 0
    assert seen("scorer_compute_seconds_count", scorer="s") == 0
