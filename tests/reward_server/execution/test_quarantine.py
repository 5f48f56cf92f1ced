"""A completion that has cost two workers their lives is not run a third time; a score clears it; memory is bounded."""

from __future__ import annotations

from pathlib import Path

import pytest

from reward_server.config import config_from_mapping
from reward_server.execution.quarantine import Quarantine, QuarantinedSiblingError, QuarantineExecutor
from reward_server.execution.results import NoResultError, TimedResult
from reward_server.serving.scorer_set import ScorerSet
from reward_server.types import Group, GroupScores, Score, Status
from tests.support.builders import make_group
from tests.support.tally import Tally

FILE = Path(__file__).parents[2] / "support" / "misbehaving.py"

DEATH = NoResultError(Status.FAILED, "the worker process died", cost_worker=True)
RAISED = NoResultError(Status.FAILED, "ValueError")


def is_quarantined(quarantine: Quarantine, *completions: str, **names: object) -> bool:
    return quarantine.contains(make_group(completions, **names))


def died(quarantine: Quarantine, *completions: str, **names: object) -> None:
    quarantine.count_death(make_group(completions, **names))


def test_two_deaths_are_one_too_many_whatever_the_group_is_called() -> None:
    quarantine = Quarantine()
    for _ in range(2):
        assert not is_quarantined(quarantine, "bad")
        died(quarantine, "bad")
    assert is_quarantined(quarantine, "good", "bad", group_id="another", run_id="another", step=7)


def test_a_death_in_a_group_and_a_death_alone_are_two() -> None:
    quarantine = Quarantine()
    died(quarantine, "good", "bad")
    quarantine.clear(make_group(["good"]))
    died(quarantine, "bad")
    died(quarantine, "good", "other")
    assert is_quarantined(quarantine, "bad")
    assert not is_quarantined(quarantine, "good"), "its score cleared it of the first death"


def test_a_completion_is_quarantined_only_if_it_was_alone_when_its_worker_died() -> None:
    # Groups that run at the same time all lose their workers before any of their completions is tried alone.
    quarantine = Quarantine()
    for other in ("bad", "worse", "worst"):
        died(quarantine, "good", other)
    assert not is_quarantined(quarantine, "good")
    died(quarantine, "bad")
    assert is_quarantined(quarantine, "bad")


def test_the_same_text_under_another_prompt_or_column_is_another() -> None:
    quarantine = Quarantine()
    for _ in range(2):
        died(quarantine, "bad", prompt="p", columns={"a": 1})
    assert not is_quarantined(quarantine, "bad", prompt="q", columns={"a": 1})
    assert not is_quarantined(quarantine, "bad", prompt="p", columns={"a": 2})
    assert is_quarantined(quarantine, "bad", prompt="p", columns={"a": 1})


def test_the_groups_of_a_group_aware_scorer_are_quarantined_as_a_whole() -> None:
    quarantine = Quarantine(group_aware=True)
    for _ in range(2):
        died(quarantine, "a", "b")
    assert is_quarantined(quarantine, "a", "b")
    assert not is_quarantined(quarantine, "a", "c")


def test_the_least_recently_seen_is_forgotten_first() -> None:
    quarantine = Quarantine(max_keys=3)
    for text in ("a", "a", "b", "b", "c", "c", "d", "d"):
        died(quarantine, text)
    assert [is_quarantined(quarantine, text) for text in "abcd"] == [False, True, True, True]


def test_text_that_utf_8_cannot_carry_is_counted_too() -> None:
    quarantine = Quarantine()
    for _ in range(2):
        died(quarantine, "\ud83d")
    assert is_quarantined(quarantine, "\ud83d")


# -------------------------------------------------------------------------------------------------------- the executor


class Raising:
    """An executor that raises a failure for every group."""

    def __init__(self, failure: NoResultError):
        self.failure = failure
        self.calls = 0

    async def run(self, group: Group) -> TimedResult:
        self.calls += 1
        raise self.failure


async def failure_of(executor: QuarantineExecutor, *completions: str) -> NoResultError:
    with pytest.raises(NoResultError) as caught:
        await executor.run(make_group(completions))
    return caught.value


async def test_the_third_run_is_refused_and_the_executor_behind_is_not_asked() -> None:
    inner = Raising(DEATH)
    executor = QuarantineExecutor(inner, group_aware=False)
    assert [await failure_of(executor, "bad") for _ in range(2)] == [DEATH, DEATH]
    refused = await failure_of(executor, "bad")
    assert refused.message.startswith("not run again: it has cost 2 worker processes their lives")
    assert (refused.status, refused.retry_alone, inner.calls) == (Status.FAILED, False, 2)
    assert isinstance(await failure_of(executor, "bad", "good"), QuarantinedSiblingError)
    assert inner.calls == 2


async def test_a_completion_that_only_raises_is_never_refused() -> None:
    executor = QuarantineExecutor(Raising(RAISED), group_aware=False)
    assert [await failure_of(executor, "bad") for _ in range(5)] == [RAISED] * 5


async def test_a_score_clears_a_completion() -> None:
    inner = Tally()
    executor = QuarantineExecutor(inner, group_aware=False)
    executor.quarantine.count_death(make_group(["good"]))
    await executor.run(make_group(["good"]))
    assert executor.quarantine.is_empty


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
