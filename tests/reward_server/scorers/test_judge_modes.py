"""The scorer `judge`: the scores of its three modes, pointwise, pairwise and listwise."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from reward_server.errors import InvalidGroupError
from reward_server.scorers.judge.ranking import pairs, rank_scores, win_rates
from reward_server.types import Completion, Group, Status
from tests.support.builders import make_group
from tests.support.engines import Asked, running
from tests.support.judges import (
    chat,
    grades_good,
    judged,
    make,
    prefers_long,
    ranks_by_length,
    scores,
    texts_of,
    values,
    verdict,
)

# ----------------------------------------------------------------------------------------------------------- pointwise


async def test_pointwise_grades_are_taken_to_zero_to_one() -> None:
    with running(grades_good) as engine:
        result = await judged(make(engine, scale=[1, 5]), make_group(["bad", "good", "good good good good"]))
    assert values(result.scores) == [0.0, 0.25, 1.0]
    assert result.metrics == {"judge/tokens": 300.0}
    assert result.extra == {"judge_reasoning": ["since"] * 3}
    asked = engine.asked[0]
    assert asked.path == "/v1/chat/completions"
    assert asked.body["model"] == "m"
    assert asked.body["response_format"]["json_schema"]["schema"] == {
        "type": "object",
        "properties": {"reasoning": {"type": "string"}, "score": {"type": "integer", "enum": [1, 2, 3, 4, 5]}},
        "required": ["reasoning", "score"],
        "additionalProperties": False,
    }


async def test_several_samples_are_averaged() -> None:
    grades = itertools.cycle([1, 10, 4])
    with running(lambda _: verdict(score=next(grades))) as engine:
        (score,) = await scores(make(engine, samples=3, concurrent_calls=1), make_group(["a"]))
    assert score.value == pytest.approx((0 + 1 + 3 / 9) / 3)


async def test_one_malformed_sample_fails_its_completion_and_no_other() -> None:
    def answer(asked: Asked) -> Any:
        return chat("10/10!") if "odd" in texts_of(asked)["answer"] and len(engine.asked) % 2 else grades_good(asked)

    with running(answer) as engine:
        odd, even = await scores(make(engine, samples=2), make_group(["odd", "good"]))
    assert odd.status is Status.FAILED
    assert "of 2: the verdict is not one JSON object" in odd.message
    assert even.value == pytest.approx(1 / 9)


async def test_the_rubric_and_other_columns_may_be_each_prompts_own(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "user: |\n  {{ rubric }}; expected: {{ columns.items }} {{ columns['my tags'] }}\n"
        "  {{ prompt }}\n  {{ completion }}\n  {{ form }}\n"
    )
    columns = {"items": "42", "my tags": ["a"], "how": "be kind"}
    with running(grades_good) as engine:
        scorer = make(engine, tmp_path, template="mine.yaml", rubric_column="how")
        assert values(await scores(scorer, make_group(["good"], columns=columns))) == [1 / 9]
    assert scorer.required_columns == ("how", "items", "my tags")
    (message,) = engine.asked[0].body["messages"]
    assert message["content"].startswith('be kind; expected: 42 ["a"]')


@pytest.mark.parametrize("rubric", [None, "", " ", 5])
async def test_a_row_without_a_rubric_is_the_callers_to_mend(rubric: Any) -> None:
    with pytest.raises(InvalidGroupError, match=r"the column 'how' holds .* where a rubric, as text, was due"):
        await scores(make("http://127.0.0.1:9", rubric_column="how"), make_group(["a"], columns={"how": rubric}))


async def test_the_options_of_a_call_are_sent_as_the_endpoint_knows_them() -> None:
    with running(lambda _: chat('{"score": 3}')) as engine:
        extra = {"max_completion_tokens": 9, "seed": 1}
        scorer = make(engine, reasoning=False, structured_output="json_object", temperature=0.5, extra_body=extra)
        (score,) = await scores(scorer, make_group(["a"]))
    body = engine.asked[0].body
    assert score.value == pytest.approx(2 / 9)
    assert body.pop("messages")
    assert body == {
        "model": "m",
        "response_format": {"type": "json_object"},
        "temperature": 0.5,
        "max_completion_tokens": 9,
        "seed": 1,
    }


# ---------------------------------------------------------------------------------------------- comparing and ranking


async def test_pairwise_scores_are_the_shares_won() -> None:
    with running(prefers_long) as engine:
        scored = await scores(make(engine, mode="pairwise"), make_group(["a", "bbb", "cc"]))
    assert values(scored) == [0.0, 1.0, 0.5]
    assert len(engine.asked) == 6  # 3 pairs, both orders


async def test_a_judge_that_likes_what_stands_first_prefers_nobody() -> None:
    with running(lambda _: verdict(better="first")) as engine:
        scored = await scores(make(engine, mode="pairwise", samples=2), make_group(["a", "bbb", "cc"]))
    assert values(scored) == [0.5, 0.5, 0.5]
    both = [tuple(texts_of(asked)[head] for head in ("first answer", "second answer")) for asked in engine.asked]
    assert sorted(both) == sorted(2 * list(itertools.permutations(["a", "bbb", "cc"], 2)))


async def test_equal_texts_are_a_tie_that_costs_no_call() -> None:
    with running(prefers_long) as engine:
        scored = await scores(make(engine, mode="pairwise"), make_group(["a", "a", "bb"]))
    assert values(scored) == [0.25, 0.25, 1.0]
    assert len(engine.asked) == 4


async def test_a_completion_that_breaks_comparisons_leaves_alone() -> None:
    def answer(asked: Asked) -> Any:
        return chat("I cannot") if "poison" in " ".join(texts_of(asked).values()) else prefers_long(asked)

    with running(answer) as engine:
        scored = await scores(make(engine, mode="pairwise"), make_group(["a", "bb", "poison", "cccc"]))
        two = await scores(make(engine, mode="pairwise"), make_group(["a", "poison"]))
    assert values(scored) == [0.0, 0.5, None, 1.0]
    assert scored[2].status is Status.FAILED
    assert "compared with completion 0: call 1 of 2: the verdict is not one JSON object" in scored[2].message
    assert [score.status for score in two] == [Status.FAILED] * 2  # nobody can tell which of the two it was


async def test_listwise_ranks_the_group_in_one_call_in_any_order_shown() -> None:
    with running(ranks_by_length) as engine:
        scorer = make(engine, mode="listwise", samples=4)
        scored = await scores(scorer, make_group(["ccc", "a", "bb", "dddd", "eeeee"]))
    assert values(scored) == [0.5, 0.0, 0.25, 0.75, 1.0]
    assert len(engine.asked) == 4
    assert len({texts_of(asked)["answer 1"] for asked in engine.asked} | {texts_of(engine.asked[0])["answer 2"]}) > 1


@pytest.mark.parametrize(
    "ranking", [[1, 2], [1, 2, 2], [1, 2, 4], [1, 2, 3, 3], ["1", "2", "3"], [1, 2, True], "123", None]
)
async def test_a_ranking_that_is_no_permutation_fails_the_group(ranking: Any) -> None:
    with running(lambda _: verdict(ranking=ranking)) as engine:
        scored = await scores(make(engine, mode="listwise"), make_group(["a", "b", "c"]))
    assert [score.status for score in scored] == [Status.FAILED] * 3


async def test_a_ranking_that_fails_after_a_sound_one_fails_the_group_all_the_same() -> None:
    answers = [verdict(ranking=[1, 2, 3]), chat("The first is best.")]
    with running(lambda _: answers.pop(0)) as engine:
        scored = await scores(make(engine, mode="listwise", samples=2), make_group(["a", "b", "c"]))
    assert [score.status for score in scored] == [Status.FAILED] * 3
    assert "call 2 of 2: the verdict is not one JSON object" in scored[0].message


@pytest.mark.parametrize("mode", ["pairwise", "listwise"])
async def test_a_single_completion_has_nothing_to_be_compared_with(mode: str) -> None:
    (score,) = await scores(make("http://127.0.0.1:9", mode=mode), make_group(["a"]))
    assert score.status is Status.NOT_APPLICABLE


async def test_completions_of_different_prompts_are_not_compared() -> None:
    group = Group("p", (Completion("a"), Completion("b", prompt="q")))
    with pytest.raises(InvalidGroupError, match="the prompt differs between them; use mode: pointwise"):
        await scores(make("http://127.0.0.1:9", mode="pairwise"), group)


def test_pairs_are_all_or_those_of_the_next_rounds() -> None:
    assert pairs(3, None) == [(0, 1), (0, 2), (1, 2)]
    assert pairs(4, 1) == [(0, 1), (0, 3), (1, 2), (2, 3)]
    assert pairs(4, 2) == pairs(4, None) == pairs(4, 9)
    assert pairs(2, 1) == [(0, 1)]
    assert pairs(1, None) == []


def test_win_rates_are_of_siblings_that_all_of_them_have_met() -> None:
    full = {(0, 1): 1.0, (0, 2): 1.0, (0, 3): 0.5, (1, 2): 0.5, (1, 3): 0.0, (2, 3): 0.0}
    assert win_rates(4, full) == [pytest.approx(2.5 / 3), pytest.approx(0.5 / 3), pytest.approx(0.5 / 3), 2.5 / 3]
    # 1 fails against everyone and leaves; the others keep their comparisons with one another.
    without_1 = {pair: None if 1 in pair else value for pair, value in full.items()}
    assert win_rates(4, without_1) == [0.75, None, 0.0, 0.75]
    # One failed comparison: both leave, since nobody can tell.
    assert win_rates(4, {**full, (0, 1): None}) == [None, None, 0.0, 1.0]
    assert win_rates(3, {(0, 1): None, (0, 2): None, (1, 2): None}) == [None] * 3


def test_rank_scores_are_mean_places() -> None:
    assert rank_scores([[2, 0, 1], [2, 1, 0]]) == [0.25, 0.25, 1.0]
