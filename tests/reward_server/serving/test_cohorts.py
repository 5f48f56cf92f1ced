"""The gathering of samples by itself: what belongs together, what contradicts what, and how much is held."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from reward_server.errors import GroupTooLargeError, InvalidGroupError, OverloadedError
from reward_server.serving.cohorts import Cohort, Cohorts, check_sample
from reward_server.types import Completion, Sample, group_of

KEY = ("token", "run", "g")


def make_sample(index: int = 0, text: str = "a", of: int = 2, **names: Any) -> Sample:
    return Sample("p", Completion(text, columns={"answer": "4"}), of, index, group_id="g", **names)


class Gathering:
    """Cohorts of a few completions and bytes, at a time that a test sets."""

    def __init__(self, completions: int = 8, max_bytes: int = 1000, group_bytes: int = 500):
        self.cohorts = Cohorts(completions, max_bytes, group_bytes)
        self.now = 100.0

    def join(self, sample: Sample, request_bytes: int = 10, key: Any = KEY) -> Cohort:
        return self.cohorts.joined(key, sample, request_bytes, self.now)

    def finish(self, cohort: Cohort, key: Any = KEY) -> None:
        answers = {name: f"answer {name}".encode() for name in cohort.names()}
        self.cohorts.finish(key, cohort, answers, b"too late", self.now)


@pytest.fixture
def gathering() -> Gathering:
    return Gathering()


def test_a_cohort_is_complete_with_its_last_sample_and_in_the_order_of_the_index(gathering: Gathering) -> None:
    assert not gathering.join(make_sample(1, "b")).is_complete
    cohort = gathering.join(make_sample(0, "a"))
    assert cohort.is_complete
    group = group_of(cohort.samples())
    assert group.contents() == ["a", "b"]
    assert group.columns == {"answer": "4"}  # stored once


def test_without_an_index_samples_are_in_the_order_in_which_they_came(gathering: Gathering) -> None:
    gathering.join(make_sample(text="second", sample_id="z"))
    cohort = gathering.join(make_sample(text="first", sample_id="a"))
    assert group_of(cohort.samples()).contents() == ["second", "first"]


def test_a_sample_that_comes_again_is_there_once(gathering: Gathering) -> None:
    gathering.join(make_sample(0))
    cohort = gathering.join(dataclasses.replace(make_sample(0), gather_s=7.0))  # a retry may have less time
    assert len(cohort) == 1


def test_columns_that_come_in_another_order_are_the_same(gathering: Gathering) -> None:
    sample, again = (
        Sample("p", Completion("a", columns=columns), 2, group_id="g")
        for columns in ({"x": 1, "y": [2]}, {"y": [2], "x": 1})
    )
    gathering.join(sample)
    assert len(gathering.join(again)) == 1


def test_a_column_may_be_nested_deeply(gathering: Gathering) -> None:
    deep = json.loads("[" * 600 + "]" * 600)
    assert len(gathering.join(Sample("p", Completion("a", columns={"x": deep}), 2, group_id="g"))) == 1


def test_token_ids_are_kept_where_one_completion_is_empty(gathering: Gathering) -> None:
    gathering.join(Sample("p", Completion("a", token_ids=(1, 2)), 2, 0, group_id="g"))
    cohort = gathering.join(Sample("p", Completion(""), 2, 1, group_id="g"))  # the wire has no empty list
    assert [completion.token_ids for completion in group_of(cohort.samples()).completions] == [(1, 2), ()]


CONTRADICTIONS = {
    "of is 3, and was 2": make_sample(1, of=3),
    "step is 5, and was 0": make_sample(1, step=5),
    "scorers is": make_sample(1, scorers=("a",)),
    "score_incomplete is True": make_sample(1, score_incomplete=True),
    "all its calls give a sample_id, or none does": make_sample(sample_id="x"),
    "sample 0 came before with another prompt, completion or column": make_sample(0, "other"),
}


@pytest.mark.parametrize("message", CONTRADICTIONS)
def test_a_contradiction_names_the_group_and_what_differs(message: str, gathering: Gathering) -> None:
    gathering.join(make_sample(0))
    with pytest.raises(InvalidGroupError, match=rf"group 'g': .*{message}"):
        gathering.join(CONTRADICTIONS[message])
    assert len(gathering.join(make_sample(0))) == 1


def test_one_sample_too_many_is_refused(gathering: Gathering) -> None:
    for name in "ab":
        gathering.join(make_sample(sample_id=name))
    with pytest.raises(InvalidGroupError, match="it has 2 samples, and 'c' is one more; a group_id may not be"):
        gathering.join(make_sample(sample_id="c"))


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (make_sample(2, of=2), "index 2 is not below of = 2"),
        (make_sample(sample_id="a", of=0), "group 'g': `of` is 0, and says how many completions the group has"),
        (Sample("p", Completion("a"), of=2), "without a group_id is a group of its own, and `of` is 2"),
        (make_sample(gather_s=float("nan")), "gather_s is nan"),
        (Sample("p", Completion("a", prompt="q"), group_id="g"), "the completion has another"),
    ],
)
def test_a_sample_that_contradicts_itself_is_refused(sample: Sample, message: str) -> None:
    with pytest.raises(InvalidGroupError, match=message):
        check_sample(sample)


def test_what_is_finished_answers_calls_that_come_again_until_it_is_forgotten(gathering: Gathering) -> None:
    cohort = gathering.join(make_sample(0))
    gathering.join(make_sample(1, "b"))
    gathering.finish(cohort)
    again = gathering.join(make_sample(1, "b"))
    assert again.answer_to(make_sample(1, "b")) == b"answer 1"
    with pytest.raises(InvalidGroupError, match="came before with another"):
        gathering.join(make_sample(1, "c"))
    gathering.now += 601
    assert gathering.join(make_sample(1, "c")).answer_to(make_sample(1, "c")) is None


def test_a_sample_that_is_too_late_is_told_so_and_begins_no_cohort(gathering: Gathering) -> None:
    gathering.finish(gathering.join(make_sample(0)))
    assert gathering.join(make_sample(1)).answer_to(make_sample(1)) == b"too late"
    assert len(gathering.cohorts) == 0


def test_callers_with_different_tokens_never_meet(gathering: Gathering) -> None:
    gathering.join(make_sample(0))
    assert len(gathering.join(make_sample(1), key=("other", "run", "g"))) == 1


# ------------------------------------------------------------------------------------------------------------- bounds


def test_a_full_server_takes_no_other_cohort_but_completes_those_that_it_has(gathering: Gathering) -> None:
    gathering.join(make_sample(0, of=8))
    with pytest.raises(OverloadedError, match=r"1 groups are being gathered \(8 completions, 80 bytes\)") as caught:
        gathering.join(make_sample(0), key=("", "", "other"))
    assert caught.value.retry_after_s
    for index in range(1, 8):
        assert gathering.join(make_sample(index, of=8)).is_complete == (index == 7)


def test_samples_that_grow_beyond_the_bytes_are_pushed_back() -> None:
    gathering = Gathering(max_bytes=200)
    gathering.join(make_sample(0), 50)
    gathering.join(make_sample(0), 50, key=("", "", "other"))
    with pytest.raises(OverloadedError):
        gathering.join(make_sample(1), 51)
    assert gathering.join(make_sample(1), 50).is_complete


def test_a_group_beyond_the_servers_limit_is_too_large_however_it_comes(gathering: Gathering) -> None:
    gathering.join(make_sample(0), 300)
    with pytest.raises(GroupTooLargeError, match="group 'g' is 501 bytes with this sample, and this server takes 500"):
        gathering.join(make_sample(1), 201)


def test_what_is_finished_or_dropped_makes_room(gathering: Gathering) -> None:
    gathering.finish(gathering.join(make_sample(0, of=8)))
    cohort = gathering.join(make_sample(0, of=8), key=("", "", "b"))
    gathering.cohorts.drop(("", "", "b"), cohort)
    assert gathering.join(make_sample(0, of=8), key=("", "", "c")) is not cohort


def test_a_single_cohort_beyond_the_bounds_is_taken() -> None:
    gathering = Gathering(completions=2)
    assert len(gathering.join(make_sample(0, of=9))) == 1


def test_the_oldest_answers_are_forgotten_first() -> None:
    gathering = Gathering(completions=1 << 20, max_bytes=1 << 30)
    for number in range(3):
        key = ("", "", str(number))
        gathering.finish(gathering.join(make_sample(0, of=30_000), key=key), key)
    answers = [gathering.join(make_sample(0, of=30_000), key=("", "", str(n))).answer_to(make_sample(0)) for n in "012"]
    assert answers == [None, b"answer 0", b"answer 0"]  # 65,536 samples at most


def test_large_answers_are_forgotten_before_small_ones_would_be(gathering: Gathering) -> None:
    for number in range(3):
        cohort = gathering.join(make_sample(0), key=("", "", str(number)))
        gathering.cohorts.finish(("", "", str(number)), cohort, {0: b"x" * (30 << 20)}, b"", gathering.now)
    kept = [gathering.join(make_sample(0), key=("", "", str(number))).answers is not None for number in range(3)]
    assert kept == [False, True, True]  # 64 MiB at most
