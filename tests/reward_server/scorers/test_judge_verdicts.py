"""The scorer `judge`: which answers are verdicts, and what becomes of all others."""

from __future__ import annotations

import time
from typing import Any

import pytest
from starlette.responses import JSONResponse, Response

from reward_server.types import Status
from tests.support.builders import make_group
from tests.support.engines import Asked, running
from tests.support.judges import GOOD, chat, grades_good, make, scores, texts_of, values

# --------------------------------------------------------------------------------------------------- what is no verdict


@pytest.mark.parametrize(
    "content",
    [
        "",
        "10",
        "Score: 10",
        '{"score": 10}',
        '{"reasoning": "since", "score": 11}',
        '{"reasoning": "since", "score": 0}',
        '{"reasoning": "since", "score": -5}',
        '{"reasoning": "since", "score": 9.5}',
        '{"reasoning": "since", "score": 9.0}',
        '{"reasoning": "since", "score": "10"}',
        '{"reasoning": "since", "score": true}',
        '{"reasoning": "since", "score": null}',
        '{"reasoning": "since", "score": NaN}',
        '{"reasoning": "since", "score": [10]}',
        '{"reasoning": 7, "score": 10}',
        '{"reasoning": "since", "score": 2, "final": 10}',
        '{"reasoning": "since", "score": 10, "score": 2}',
        f"The text claims {GOOD}",
        f"{GOOD}\n{GOOD}",
        f"[{GOOD}]",
        GOOD[:-1],
        pytest.param("[" * 100_000, id="deep"),
    ],
)
async def test_a_malformed_verdict_is_failed_never_a_number(content: str) -> None:
    with running(lambda _: chat(content)) as engine:
        (score,) = await scores(make(engine), make_group(["a"]))
    assert score.status is Status.FAILED
    assert "verdict" in score.message


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (chat(GOOD, finish_reason="length"), "'length'; raise max_tokens"),
        (chat(GOOD, finish_reason="content_filter"), "'content_filter'"),
        (chat(None, refusal="I will not"), "the judge refuses: 'I will not'"),
        (chat(None), "no text, but None"),
        ({"choices": []}, "no chat completion"),
        ({"choices": [{}]}, "no chat completion"),
        ({"error": "odd"}, "200 with an error: odd"),
        ([], "no chat completion"),
        (Response("<html>"), "not JSON"),
        (JSONResponse({"error": {"message": "The model `m` does not exist."}}, 404), "`m` does not exist"),
        (JSONResponse({"error": {"message": "too long"}}, 400), "400 Bad Request: too long"),
    ],
)
async def test_a_call_without_a_verdict_is_failed_and_says_why(answer: Any, reason: str) -> None:
    with running(lambda _: answer) as engine:
        (score,) = await scores(make(engine), make_group(["a"]))
    assert score.status is Status.FAILED
    assert reason in score.message


async def test_a_judge_that_is_busy_is_asked_again() -> None:
    answers = [JSONResponse({"error": {"message": "rate limit"}}, 429, headers={"retry-after": "0"})]
    with running(lambda asked: answers.pop() if answers else grades_good(asked)) as engine:
        assert values(await scores(make(engine), make_group(["good"]))) == [1 / 9]


async def test_a_completion_that_makes_the_judge_hang_costs_its_own_score() -> None:
    def answer(asked: Asked) -> Any:
        if "hang" in texts_of(asked)["answer"]:
            time.sleep(2)
        return grades_good(asked)

    with running(answer) as engine:
        hung, fine = await scores(make(engine, timeout_s=1), make_group(["hang", "good"]))
    assert hung.status is Status.TIMEOUT
    assert fine.value == pytest.approx(1 / 9)


# ---------------------------------------------------------------------------------------------- the judge's own form

HARMONY = "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>"


@pytest.mark.parametrize(
    "content",
    [
        f"<think>\nIt says 10, but it is a 2.\n</think>\n\n{GOOD}",
        f"<think></think>{GOOD}\n",
        f"It is a 2, I think.\n</think>\n\n{GOOD}",  # the opening tag is part of the prompt
        f"[THINK]hm[/THINK]{GOOD}",
        f"{HARMONY}{GOOD}",
        f"```json\n{GOOD}\n```",
        f"```\n{GOOD}\n```\n",
        f"<think>hm</think>\n```json\n{GOOD}\n```",
        f'<think>{{"reasoning": "draft", "score": 9}}</think>{GOOD}',
        '{"reasoning": "it wrote </think>{} and ```", "score": 2}',
    ],
)
async def test_thoughts_before_a_verdict_and_a_fence_around_it_are_the_judges_own_form(content: str) -> None:
    with running(lambda _: chat(content)) as engine:
        assert values(await scores(make(engine), make_group(["a"]))) == [pytest.approx(1 / 9)]


@pytest.mark.parametrize(
    "content",
    [
        f"<think>never closed {GOOD}",
        f"<think>one</think><think>two</think>{GOOD}",
        f"<think>one <think>two</think>{GOOD}",
        f"<think>hm</think>So: {GOOD}",
        f"<think>hm</think>{GOOD}</think>",
        f"{GOOD}<think>hm</think>",
        f"{GOOD}</think>{GOOD}",
        f"Here it is:\n```json\n{GOOD}\n```",
        f"```json\n{GOOD}\n```\nas asked",
        f"```json\n{GOOD}\n```\n```json\n{GOOD}\n```",
        f"```json\n```json\n{GOOD}\n```\n```",
        f"```json\n<think>hm</think>\n{GOOD}\n```",
        f"```json\n{GOOD}",
        f"<reflection>hm</reflection>{GOOD}",
    ],
)
async def test_whatever_else_stands_around_a_verdict_makes_it_malformed(content: str) -> None:
    with running(lambda _: chat(content)) as engine:
        (score,) = await scores(make(engine), make_group(["a"]))
    assert score.status is Status.FAILED
    assert "the verdict is not one JSON object" in score.message


@pytest.mark.parametrize(
    "content",
    [
        [{"type": "text", "text": GOOD}],
        [{"type": "text", "text": GOOD[:9]}, {"type": "output_text", "text": GOOD[9:]}],
        [GOOD],
        [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"type": "text", "text": GOOD}],
    ],
)
async def test_content_may_be_a_list_of_text_parts(content: Any) -> None:
    with running(lambda _: chat(content)) as engine:
        assert values(await scores(make(engine), make_group(["a"]))) == [pytest.approx(1 / 9)]


@pytest.mark.parametrize("content", [[], [{"type": "image_url", "image_url": {}}], [{"type": "text"}], [None]])
async def test_content_without_text_is_failed(content: Any) -> None:
    with running(lambda _: chat(content)) as engine:
        (score,) = await scores(make(engine), make_group(["a"]))
    assert score.status is Status.FAILED
    assert "no text" in score.message


@pytest.mark.parametrize("key", ["reasoning", "reasoning_content"])
async def test_thoughts_beside_the_content_are_no_verdict(key: str) -> None:
    forged = '{"reasoning": "perfect", "score": 10}'
    with running(lambda _: chat(GOOD, **{key: forged})) as engine:
        assert values(await scores(make(engine), make_group(["a"]))) == [pytest.approx(1 / 9)]
    with running(lambda _: chat(None, **{key: forged})) as engine:
        (score,) = await scores(make(engine), make_group(["a"]))
    assert score.status is Status.FAILED
    assert "the engine took all of it for reasoning: raise max_tokens" in score.message
