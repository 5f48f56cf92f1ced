"""What all scorers share: reading a completion's text, and turning return values into scores."""

from __future__ import annotations

import json
from typing import Any

import pytest

from reward_server.scorers.base import text_of, to_score, to_scores
from reward_server.types import Status


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("plain", "plain"),
        ([{"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"}], "ab"),
        (
            [{"role": "assistant", "content": "a"}, {"role": "tool", "content": "t"}, {"role": "user", "content": "u"}],
            "a",
        ),
        ([{"role": "assistant", "content": None, "tool_calls": []}], ""),
        ([{"role": "assistant", "content": [{"type": "text", "text": "a"}, {"type": "image"}, "b"]}], "ab"),
        ([{"content": "no role, as in TRL's examples"}], "no role, as in TRL's examples"),
        ([], ""),
    ],
)
def test_the_text_of_a_completion_is_what_the_assistant_said(content: Any, text: str) -> None:
    assert text_of(content) == text


def test_numbers_of_every_kind_are_scores_and_none_is_not_applicable() -> None:
    torch = pytest.importorskip("torch")
    numpy = pytest.importorskip("numpy")
    values = [1, True, 0.5, numpy.float32(0.25), torch.tensor(2), None]
    scores = to_scores(values, 6)
    assert [score.value for score in scores] == [1.0, 1.0, 0.5, 0.25, 2.0, None]
    assert scores[-1].status is Status.NOT_APPLICABLE
    json.dumps([score.value for score in scores])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (float("nan"), "returned nan, not a finite number"),
        (float("-inf"), "returned -inf, not a finite number"),
        ("0.5", "returned the string '0.5', not a number"),
        ([1.0], "returned [1.0] of type list, not a number"),
    ],
)
def test_what_is_no_score_is_invalid_and_says_what_it_is(value: Any, message: str) -> None:
    score = to_score(value)
    assert (score.status, score.value, score.message) == (Status.INVALID, None, message)


def test_a_wrong_number_of_scores_makes_all_invalid() -> None:
    assert [score.status for score in to_scores([1.0], 3)] == [Status.INVALID] * 3
    assert to_scores([1.0], 3)[0].message == "returned 1 scores for 3 completions"
    assert "returned 1.0 of type float, not a list of 2 scores" in to_scores(1.0, 2)[0].message
