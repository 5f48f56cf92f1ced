"""What a case expects, and when scores meet it."""

from __future__ import annotations

from typing import Any

import pytest

from reward_server.errors import InvalidGroupError
from reward_server.evaluation.expectations import expectation_of
from reward_server.types import Score, Status

FAILED = Score(Status.FAILED, message="no engine")
NONE = Score(Status.NOT_APPLICABLE)


def score(value: float) -> Score:
    return Score(Status.OK, value)


@pytest.mark.parametrize(
    ("told", "scores", "problems"),
    [
        (1, [score(1.0)], []),
        (1.2, [score(0.1 + 0.9 + 0.2)], []),  # sums of weights are rounded
        (1, [score(0.5)], ["completion 0: expected 1, got 0.5"]),
        (1, [score(1), score(0)], ["completion 1: expected 1, got 0"]),  # one expectation is of every completion
        ([1, 0], [score(1), score(0)], []),
        ([None, 0], [score(7), score(0)], []),
        ({"value": 1, "tolerance": 0.2}, [score(1.15)], []),
        ({"value": 1, "tolerance": 0.1}, [score(1.15)], ["completion 0: expected 1 ± 0.1, got 1.15"]),
        ({"min": 0, "max": 1}, [score(0.5)], []),
        ({"min": 0.6}, [score(0.5)], ["completion 0: expected at least 0.6, got 0.5"]),
        ({"status": "not_applicable"}, [NONE], []),
        ({"status": "failed"}, [score(0)], ["completion 0: expected FAILED, got 0"]),
        ({"better": [1, 0]}, [score(0), score(1)], []),
        ({"better": [0, 1]}, [score(1), score(1)], ["expected completion 0 above completion 1, got 1 and 1"]),
    ],
)
def test_an_expectation_is_met_or_says_what_it_got(told: Any, scores: list[Score], problems: list[str]) -> None:
    assert expectation_of(told, len(scores), "case").problems(scores) == problems


@pytest.mark.parametrize("told", [0, {"min": -100}, {"max": 100}, {"value": 0, "tolerance": 100}, {"better": [0, 1]}])
@pytest.mark.parametrize("missing", [FAILED, NONE])
def test_a_failed_or_absent_score_meets_no_number_and_is_above_none(told: Any, missing: Score) -> None:
    assert expectation_of(told, 2, "case").problems([missing, score(-50)])


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ("1", "'1' is not understood; write a number"),
        (True, "True is not understood"),
        (float("nan"), "nan is not understood"),
        ({"minimum": 0}, "is not understood"),
        ({"value": 1, "min": 0}, "is not understood"),
        ([1], "has 1 entries and the case has 2 completions"),
        ({"better": [0]}, "at least two different completions by index, 0 to 1"),
        ({"better": [0, 2]}, "by index, 0 to 1"),
        ({"better": [0, 0]}, "two different completions"),
        ({"better": [0, 1], "min": 1}, "`better` stands alone"),
        ({"status": "fine"}, "there is no status 'fine'; there are OK"),
    ],
)
def test_what_is_not_understood_is_refused_with_what_can_be_written(told: Any, message: str) -> None:
    with pytest.raises(InvalidGroupError, match=message.replace("(", r"\(")):
        expectation_of(told, 2, "case")
