"""Several scorers' scores come to one by stated rules, and a part that fails is never a number."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from reward_server.config import config_from_mapping
from reward_server.errors import ConfigError, InvalidGroupError
from reward_server.scorers.base import Result
from reward_server.types import Completion, Group, Score, Status
from tests.support.builders import make_group
from tests.support.composites import Said, composed, composite, part, served, value
from tests.support.servers import function

SUPPORT = Path(__file__).parents[2] / "support"
FAILED = Score(Status.FAILED, message="no")


# --------------------------------------------------------------------------------------------------------- combining


@pytest.mark.parametrize(
    ("options", "said", "expected"),
    [
        ({}, (1.0, 2.0), 2.5 + 2.0),
        ({"combine": "mean"}, (1.0, 2.0), (2.5 + 2.0) / 3.5),
        ({"clip_parts": {"a": [-1, 0.5]}}, (4.0, 2.0), 1.25 + 2.0),
        ({"clip": [-1, 3]}, (4.0, 2.0), 3.0),
        ({}, (None, 2.0), 2.0),  # what does not apply is no zero
        ({"combine": "mean"}, (None, 2.0), 2.0),
    ],
)
def test_weighted_scores_are_combined_and_clipped(options: Any, said: Any, expected: float) -> None:
    assert value(composite(part("a", weight=2.5), part("b"), **options), *said).value == pytest.approx(expected)


@pytest.mark.parametrize(("combine", "expected"), [("min", -2.0), ("product", -6.0)])
def test_min_and_product_take_the_scores_as_they_are(combine: str, expected: float) -> None:
    assert value(composite(combine=combine), 3.0, -2.0).value == expected


def test_where_no_part_applies_the_composite_does_not() -> None:
    assert value(composite(), None, None).status is Status.NOT_APPLICABLE


def test_what_overflows_is_invalid_and_no_number() -> None:
    assert value(composite(combine="product"), 1e300, 1e300).status is Status.INVALID
    assert value(composite(clip=[-1, 1]), 1.7e308, 1.7e308).status is Status.INVALID


@pytest.mark.parametrize("status", [Status.FAILED, Status.TIMEOUT, Status.INVALID])
def test_a_part_that_fails_fails_the_composite_with_its_status_and_name(status: Status) -> None:
    score = value(composite(), 1.0, Score(status, message="why"))
    assert (score.status, score.value, score.message) == (status, None, "part 'b': why")


def test_left_out_a_failed_part_does_not_apply_unless_nothing_else_does() -> None:
    scorer = composite(failed_part="leave_out")
    assert value(scorer, 1.0, FAILED).value == 1.0
    assert value(scorer, None, FAILED).status is Status.FAILED


# ------------------------------------------------------------------------------------------------------------- gates


def test_behind_a_closed_gate_nothing_is_applicable_and_nothing_is_asked() -> None:
    scorer = composite(part("form", weight=0.5), part("rest", weight=3.0), gates={"form": 1.0})
    said = Said({"good": (1.0, 2.0), "bad": (0.5, 2.0)})
    assert [score.value for score in composed(scorer, said, ["good", "bad"]).scores] == [6.5, 0.25]
    assert said.asked == [(0, ["good", "bad"]), (1, ["good"])]


def test_gates_are_asked_in_their_order_and_before_all_else() -> None:
    scorer = composite(part("rest"), part("cheap"), part("dear"), gates={"dear": 1.0, "cheap": 1.0})
    said = Said({"a": (1, 1, 1), "b": (1, 0, 1), "c": (1, 1, 0)})
    composed(scorer, said, ["a", "b", "c"])
    assert said.asked == [(1, ["a", "b", "c"]), (2, ["a", "c"]), (0, ["a"])]


def test_a_gate_that_does_not_apply_is_open_and_one_that_fails_is_a_failure() -> None:
    scorer = composite(gates={"a": 1.0})
    assert value(scorer, None, 2.0).value == 2.0
    said = Said({"x": (FAILED, 2.0)})
    assert composed(scorer, said, ["x"]).scores[0].status is Status.FAILED
    assert said.asked == [(0, ["x"])]
    assert value(composite(gates={"a": 1.0}, failed_part="leave_out"), FAILED, 2.0).value == 2.0


def test_a_part_that_sees_groups_is_asked_for_the_whole_group_behind_a_gate_too() -> None:
    ranks = {"type": "group_function", "name": "b", "function": f"{SUPPORT / 'scoring.py'}:rank_in_group"}
    said = Said({"good": (1, 7), "bad": (0, 9)})
    result = composed(composite(part("a"), ranks, gates={"a": 1.0}), said, ["bad", "good"])
    assert said.asked[1] == (1, ["bad", "good"])
    assert [score.value for score in result.scores] == [0.0, 8.0]


def test_a_part_that_cannot_score_some_without_their_siblings_gets_them() -> None:
    class Picky(Said):
        async def __call__(self, index: int, group: Group) -> Result:
            result = await super().__call__(index, group)
            if index == 1 and len(group) == 1:
                raise InvalidGroupError("no token ids")
            return result

    said = Picky({"good": (1, 7), "bad": (0, 9)})
    result = composed(composite(gates={"a": 1.0}), said, ["bad", "good"])
    assert [score.value for score in result.scores] == [0.0, 8.0]


# ------------------------------------------------------------------------------------------------------------- logging


def test_what_parts_log_is_kept_and_each_parts_mean_is_a_metric() -> None:
    said = Said({"x": (1.0, 4.0), "y": (0.0, 2.0)}, metrics={"m": 5.0})
    result = composed(composite(gates={"a": 1.0}), said, ["y", "x"])
    assert result.metrics == {"m": 5.0, "c/a": 0.5, "c/b": 4.0}
    said = Said({"x": (1.0, 4.0)}, extra={"e": ["one"]})
    assert composed(composite(), said, ["x"]).extra == {"e": ["one"], "c/b/e": ["one"]}


# -------------------------------------------------------------------------------------------------------- misconfigured


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parts": []}, "parts: "),
        ({"parts": "a"}, "must be a list of scorers, not 'a'"),
        ({"parts": [{"type": "lenth", "name": "x"}]}, r"parts\[0\]\.type: there is no scorer type 'lenth'"),
        ({"parts": [part("a", wieght=3)]}, r"parts\[0\]\.wieght = 3: unknown key, did you mean 'weight'"),
        ({"parts": [part("a"), part("a")]}, "parts are named a, a; give each its own name"),
        ({"gates": {"form": 1.0}}, "gates names 'form', and the parts are a, b"),
        ({"clip_parts": {"c": [0, 1]}}, "clip_parts names 'c', and the parts are a, b"),
        ({"clip": [1, 1]}, r"clipping to \[1, 1\] leaves nothing"),
        ({"combine": "mean", "parts": [part("a", weight=-1)]}, "a mean's weights must be above 0"),
        ({"combine": "min", "parts": [part("a", weight=2)]}, "min takes no weights"),
        ({"timeout_s": 3}, "set timeout_s of its parts"),
        ({"normalise": {"a": {}}}, "set gather to a file"),
        ({"normalise": {"a": {"gather": "x", "statistics": "x"}}}, "are both 'x'; the first must stand still"),
    ],
)
def test_what_does_not_fit_together_is_named(options: Any, message: str) -> None:
    mapping = {"type": "composite", "name": "c", "parts": [part("a"), part("b")], **options}
    with pytest.raises(ConfigError, match=message):
        config_from_mapping({"scorers": [mapping]})


# --------------------------------------------------------------------------------------------------- in a real service


QUALITY = {
    "type": "composite",
    "name": "quality",
    "gates": {"boxed": 1.0},
    "parts": [
        {"type": "regex", "name": "boxed", "pattern": "boxed", "weight": 0.5},
        {"type": "match", "name": "right", "column": "answer", "compare": "contains"},
        function("flaky", weight=2.0),
    ],
}


def test_parts_run_where_they_want_to_and_a_composite_may_be_a_part() -> None:
    outer = {"type": "composite", "name": "outer", "combine": "product", "parts": [QUALITY, part("short")]}
    (scores,), scorers = served([outer], make_group(["boxed 4", "4"], columns={"answer": "4"}))
    assert scores.scorers[0].scores[1].value == 0.0  # its gate is closed
    assert set(scores.scorers[0].metrics) >= {"outer/short", "outer/quality", "outer/quality/boxed"}
    info = scorers.info.scorers[0]
    assert (info.kind, info.required_columns, info.deterministic) == ("composite", ("answer",), False)
    with pytest.raises(InvalidGroupError, match="'outer' needs the column 'answer'"):
        served([outer], make_group(["a"]))


def test_one_completion_that_a_part_fails_on_fails_alone() -> None:
    texts = [f"boxed {n}" for n in range(12)]
    (scores,), _ = served([QUALITY], make_group(texts, columns={"answer": "4"}))
    statuses = [score.status for score in scores.scorers[0].scores]
    assert set(statuses) == {Status.OK, Status.FAILED}
    failure = next(score for score in scores.scorers[0].scores if score.status is Status.FAILED)
    assert failure.message == "part 'flaky': RuntimeError: this completion is unlucky"


def test_parts_are_cached_each_for_itself() -> None:
    group = make_group(["boxed 4", "4"], columns={"answer": "4"})
    _, scorers = served([QUALITY], group, group, cache=True)
    assert scorers.cache is not None
    hits = {name: counts.hits for name, counts in scorers.cache.counts.items()}
    assert hits == {"quality/boxed": 2, "quality/right": 1}, (
        "behind the gate, and no function that is not deterministic"
    )


def test_a_part_of_another_version_is_a_composite_of_another_version(tmp_path: Path) -> None:
    digests = set()
    for body in ("return [1.0] * len(completions)", "return [2.0] * len(completions)"):
        (tmp_path / "mine.py").write_text(f"def mine(completions, **_):\n    {body}\n")
        mine = {"type": "function", "name": "mine", "function": str(tmp_path / "mine.py") + ":mine"}
        (scores,), _ = served([{"type": "composite", "name": "c", "parts": [mine]}], make_group(["a"]))
        digests.add(scores.config_digest)
    assert len(digests) == 2


def test_a_group_whose_completions_have_columns_of_their_own_is_taken() -> None:
    group = Group("p", (Completion("boxed 4", columns={"answer": "4"}), Completion("x", columns={"answer": "x"})))
    (scores,), _ = served([{**QUALITY, "parts": QUALITY["parts"][:2]}], group)
    assert scores.rewards() == [1.5, 0.0]
