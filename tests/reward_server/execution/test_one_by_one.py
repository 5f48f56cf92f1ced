"""A group that fails as a whole is scored one by one, so that a completion that fails loses its own score only."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest

from reward_server.errors import InvalidGroupError
from reward_server.execution.one_by_one import OneByOneExecutor
from reward_server.execution.quarantine import QuarantinedSiblingError
from reward_server.execution.results import NoResultError, TimedResult
from reward_server.scorers.base import Result
from reward_server.types import Group, Score, Status
from tests.support.builders import make_group
from tests.support.tally import Tally, lengths, values


def fails_on_bad(texts: list[str], **options: Any) -> Result:
    if "bad" in texts:
        raise NoResultError(Status.FAILED, "it is bad", "Traceback of it", **options)
    return lengths(texts)


def scores(timed: TimedResult) -> list[tuple[Status, float | None]]:
    return [(score.status, score.value) for score in timed.result.scores]


async def test_a_group_that_scores_is_run_once() -> None:
    tally = Tally()
    assert values(await OneByOneExecutor(tally, "s", False).run(make_group(["a", "bb"]))) == [1.0, 2.0]
    assert tally.calls == [["a", "bb"]]


async def test_the_completion_at_fault_loses_its_own_score_only_and_is_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tally = Tally(fails_on_bad)
    timed = await OneByOneExecutor(tally, "s", False).run(make_group(["a", "bad", "ccc"], group_id="g"))
    assert scores(timed) == [(Status.OK, 1.0), (Status.FAILED, None), (Status.OK, 3.0)]
    assert timed.result.scores[1].message == "it is bad"
    assert tally.calls == [["a", "bad", "ccc"], ["a"], ["bad"], ["ccc"]]
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == [
        "scorer 's', group 'g': FAILED: it is bad\nTraceback of it"
    ]


@pytest.mark.parametrize(
    ("group_aware", "texts", "options"),
    [(True, ["a", "bad"], {}), (False, ["bad"], {}), (False, ["a", "bad"], {"retry_alone": False})],
    ids=["group-aware scorer", "one completion", "trying alone shows nothing"],
)
async def test_a_group_that_cannot_be_scored_in_parts_fails_as_a_whole(
    group_aware: bool, texts: list[str], options: dict[str, Any]
) -> None:
    tally = Tally(lambda texts: fails_on_bad(texts, **options))
    timed = await OneByOneExecutor(tally, "s", group_aware).run(make_group(texts))
    assert timed.result.scores == (Score(Status.FAILED, message="it is bad"),) * len(texts)
    assert tally.calls == [texts]


async def test_a_group_with_a_quarantined_completion_is_logged_for_that_completion_only(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def run(group: Group) -> TimedResult:
        if len(group) > 1:
            raise QuarantinedSiblingError
        return TimedResult(fails_on_bad([str(content) for content in group.contents()]))

    timed = await OneByOneExecutor(SimpleNamespace(run=run), "s", False).run(make_group(["a", "bad"], group_id="g"))
    assert scores(timed) == [(Status.OK, 1.0), (Status.FAILED, None)]
    assert [record.getMessage().splitlines()[0] for record in caplog.records] == [
        "scorer 's', group 'g', completion 1 alone: FAILED: it is bad"
    ]


async def test_an_invalid_group_is_the_callers_error_and_no_score() -> None:
    def blames_the_group(_: list[str]) -> Result:
        raise InvalidGroupError("needs the column 'answer'")

    with pytest.raises(InvalidGroupError, match="needs the column 'answer'"):
        await OneByOneExecutor(Tally(blames_the_group), "s", False).run(make_group(["a", "b"]))
