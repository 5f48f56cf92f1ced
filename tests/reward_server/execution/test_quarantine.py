"""What has killed its worker twice is not run a third time; what scores is forgiven; memory is bounded."""

from __future__ import annotations

from pathlib import Path

import pytest

from reward_server.config import config_from_mapping
from reward_server.execution.quarantine import Quarantine
from reward_server.execution.results import NoResultError
from reward_server.serving.scorer_set import ScorerSet
from reward_server.types import GroupScores, Score, Status
from tests.support.builders import make_group

FILE = Path(__file__).parents[2] / "support" / "misbehaving.py"

DEATH = NoResultError(Status.FAILED, "the worker process died", cost_worker=True)
RAISED = NoResultError(Status.FAILED, "ValueError")


def quarantined(quarantine: Quarantine, *completions: str, whole: bool = False, **names: object) -> bool:
    return quarantine.holds(make_group(completions, **names), whole)


def test_two_deaths_are_one_too_many_whatever_the_group_is_called() -> None:
    quarantine = Quarantine()
    for _ in range(2):
        assert not quarantined(quarantine, "bad")
        quarantine.note(make_group(["bad"]), False, DEATH)
    assert quarantined(quarantine, "good", "bad", group_id="another", run_id="another", step=7)
    with pytest.raises(NoResultError, match="not run again: it has cost 2 worker processes their lives"):
        quarantine.refuse(make_group(["bad"]), False)


def test_a_death_of_the_group_and_one_alone_are_two() -> None:
    quarantine = Quarantine()
    quarantine.note(make_group(["good", "bad"]), False, DEATH)
    quarantine.note(make_group(["good"]), False, None)
    quarantine.note(make_group(["bad"]), False, DEATH)
    quarantine.note(make_group(["good", "other"]), False, DEATH)
    assert quarantined(quarantine, "bad")
    assert not quarantined(quarantine, "good"), "its score cleared it of the first death"


def test_who_was_only_ever_beside_the_dead_is_not_refused() -> None:
    # Groups that come side by side all die before any of their completions is tried alone.
    quarantine = Quarantine()
    for other in ("bad", "worse", "worst"):
        quarantine.note(make_group(["good", other]), False, DEATH)
    assert not quarantined(quarantine, "good")
    quarantine.note(make_group(["bad"]), False, DEATH)
    assert quarantined(quarantine, "bad")


def test_the_same_text_under_another_prompt_or_column_is_another() -> None:
    quarantine = Quarantine()
    for _ in range(2):
        quarantine.note(make_group(["bad"], prompt="p", columns={"a": 1}), False, DEATH)
    assert not quarantined(quarantine, "bad", prompt="q", columns={"a": 1})
    assert not quarantined(quarantine, "bad", prompt="p", columns={"a": 2})
    assert quarantined(quarantine, "bad", prompt="p", columns={"a": 1})


def test_a_group_that_is_scored_whole_is_refused_whole() -> None:
    quarantine = Quarantine()
    for _ in range(2):
        quarantine.note(make_group(["a", "b"]), True, DEATH)
    assert quarantined(quarantine, "a", "b", whole=True)
    assert not quarantined(quarantine, "a", "c", whole=True)


def test_what_only_raises_is_never_refused() -> None:
    quarantine = Quarantine()
    for _ in range(5):
        quarantine.note(make_group(["bad"]), False, RAISED)
    assert not quarantined(quarantine, "bad")


def test_the_one_longest_unseen_is_forgotten_first() -> None:
    quarantine = Quarantine(most_known=3)
    for text in ("a", "a", "b", "b", "c", "c", "d", "d"):
        quarantine.note(make_group([text]), False, DEATH)
    assert [quarantined(quarantine, text) for text in "abcd"] == [False, True, True, True]


def test_text_that_utf_8_cannot_carry_is_counted_too() -> None:
    quarantine = Quarantine()
    for _ in range(2):
        quarantine.note(make_group(["\ud83d"]), False, DEATH)
    assert quarantined(quarantine, "\ud83d")


@pytest.mark.parametrize(("command", "status"), [("die", Status.FAILED), ("hang", Status.TIMEOUT)])
async def test_a_server_runs_it_in_two_workers_and_its_siblings_go_on(command: str, status: Status) -> None:
    function = {"type": "function", "name": "f", "function": f"{FILE}:obeys", "timeout_s": 1}
    scorers = ScorerSet(config_from_mapping({"scorers": [function], "workers": 1}))
    await scorers.load()
    try:
        first = outcome(await scorers.score(make_group(["a", command, "ccc"])))
        workers = scorers.worker_pids
        again = outcome(await scorers.score(make_group([command, "bb"], group_id="another")))
        assert [score.status for score in first] == [Status.OK, status, Status.OK]
        assert [score.status for score in again] == [Status.FAILED, Status.OK]
        assert "not run again" in again[0].message
        assert scorers.worker_pids == workers, "no worker has ended of it"
    finally:
        await scorers.close()


def outcome(scores: GroupScores) -> tuple[Score, ...]:
    return scores.scorers[0].scores
