"""A frozen dataclass that is made quickly is in all else what `dataclasses` makes of it."""

from __future__ import annotations

import dataclasses
import pickle

import pytest

from reward_server.frozen import quick
from reward_server.types import Completion, Score, Status


@quick
@dataclasses.dataclass(frozen=True, slots=True)
class Value:
    name: str
    count: int = 3
    parts: list[str] = dataclasses.field(default_factory=list)


def test_values_are_taken_by_position_by_name_and_by_default() -> None:
    assert dataclasses.astuple(Value("a", parts=["b"])) == ("a", 3, ["b"])
    with pytest.raises(TypeError, match="name"):
        Value()  # type: ignore[call-arg]


def test_a_default_that_can_change_is_made_for_each_value() -> None:
    Value("a").parts.append("x")
    assert Value("a").parts == []


def test_a_value_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Value("a").name = "b"  # type: ignore[misc]


def test_values_are_compared_replaced_hashed_and_pickled_as_before() -> None:
    score, completion = Score(Status.OK, 1.0), Completion("text", columns={"a": 1})
    assert dataclasses.replace(score, value=2.0) == Score(Status.OK, 2.0)
    assert hash(score) == hash(Score(Status.OK, 1.0))
    assert pickle.loads(pickle.dumps(completion)) == completion
    assert repr(Value("a")) == "Value(name='a', count=3, parts=[])"
