"""The scorer `endpoint`: what vLLM and TEI are asked, and how their answers are read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from reward_server.client import RewardClient
from reward_server.errors import ConfigError, InvalidGroupError
from reward_server.launch import ServerProcess
from reward_server.types import Completion, Group, Status
from tests.support.builders import make_group
from tests.support.engines import Asked, running
from tests.support.reward_engines import (
    KEY,
    classify,
    loaded,
    make,
    predict,
    score_pairs,
    scores,
    values,
)


async def test_classify_gets_the_whole_group_in_one_request_and_its_rows_by_index() -> None:
    with running(classify) as engine:
        scored = await scores(make(engine, model="rm"), make_group(["a", "bb", ""], prompt="ask "))
    assert values(scored) == [5.5, 6.5, 4.5]
    (asked,) = engine.asked
    assert asked.path == "/classify"
    assert asked.body == {
        "model": "rm",
        "input": ["ask a", "ask bb", "ask "],
        "use_activation": False,
        "add_special_tokens": False,
    }


async def test_messages_go_through_the_engines_chat_template_one_conversation_a_request() -> None:
    prompt = [{"role": "user", "content": "why?"}]
    completions = [[{"role": "assistant", "content": text}] for text in ("so", "because")]
    with running(classify) as engine:
        scorer = make(engine, chat_template_kwargs={"enable_thinking": False})
        scored = await scores(scorer, make_group(completions, prompt=prompt))
    assert values(scored) == [6.5, 11.5]
    bodies = sorted((asked.body for asked in engine.asked), key=lambda body: len(body["messages"][1]["content"]))
    assert bodies[0]["messages"] == [*prompt, *completions[0]]
    assert bodies[1]["chat_template_kwargs"] == {"enable_thinking": False}


async def test_a_label_is_one_of_the_models_classes() -> None:
    def three(asked: Asked) -> Any:
        return {"data": [{"index": i, "probs": [0.1, 0.2, 0.7]} for i in range(len(asked.body["input"]))]}

    with running(three) as engine:
        assert values(await scores(make(engine, label=2), make_group())) == [0.7, 0.7]
        unset = await scores(make(engine), make_group())
        beyond = await scores(make(engine, label=3), make_group())
    assert "3 classes: set label" in unset[0].message
    assert "0 to 2" in beyond[0].message
    assert {score.status for score in (*unset, *beyond)} == {Status.FAILED}


async def test_score_gives_prompt_and_completions_as_pairs() -> None:
    with running(score_pairs) as engine:
        scored = await scores(make(engine, "vllm_score"), make_group(["a", "bb"], prompt="ask"))
        own = Group("ask", (Completion("a"), Completion("b", prompt="asked")))
        with_own_prompt = await scores(make(engine, "vllm_score"), own)
    assert values(scored) == [3.1, 3.2]
    assert engine.asked[0].body == {"text_1": "ask", "text_2": ["a", "bb"], "use_activation": False}
    assert values(with_own_prompt) == [3.1, 5.1]
    assert engine.asked[1].body["text_1"] == ["ask", "asked"]


async def test_predict_takes_the_named_class_wherever_it_stands() -> None:
    with running(predict) as engine:
        scored = await scores(make(engine, "tei_predict", label="good"), make_group(["", "abcd"], prompt="x"))
        pairs = await scores(make(engine, "tei_predict", label="good", pair=True), make_group(["a"], prompt="x"))
        unset = await scores(make(engine, "tei_predict"), make_group(["a"]))
    assert values(scored) == [1.0, 5.0]
    assert engine.asked[0].body == {"inputs": [["x"], ["xabcd"]], "raw_scores": True, "truncate": False}
    assert values(pairs) == [3.0]
    assert engine.asked[1].body["inputs"] == [["x", "a"]]
    assert unset[0].message == "label None: set it to one of the model's classes, bad, good"


async def test_tei_refuses_messages_as_one_text_since_it_knows_no_chat_template() -> None:
    with pytest.raises(InvalidGroupError, match="TEI knows no chat template"):
        await scores(
            make("http://127.0.0.1:9", "tei_predict"), make_group([[{"role": "assistant", "content": "a"}]], [])
        )


async def test_truncation_is_asked_for_in_each_engines_words() -> None:
    with running(classify) as engine:
        await scores(make(engine, truncate="left"), make_group())
    with running(predict) as tei:
        await scores(make(tei, "tei_predict", label="good", truncate="left"), make_group())
    assert engine.asked[0].body["truncate_prompt_tokens"] == -1
    assert engine.asked[0].body["truncation_side"] == "left"
    assert tei.asked[0].body["truncate"] is True
    assert tei.asked[0].body["truncation_direction"] == "Left"


async def test_a_large_group_is_split_by_batch_size_and_comes_back_in_order() -> None:
    completions = ["x" * index for index in range(70)]
    with running(classify) as engine:
        scored = await scores(make(engine), make_group(completions, prompt=""))
    assert values(scored) == [index + 0.5 for index in range(70)]
    assert sorted(len(asked.body["input"]) for asked in engine.asked) == [6, 32, 32]


async def test_connections_are_kept() -> None:
    with running(classify) as engine:
        async with loaded(make(engine)) as scorer:
            for _ in range(5):
                await scorer.score(make_group())  # type: ignore[misc]
    assert len({asked.client for asked in engine.asked}) == 1


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"url": "vllm:8000"}, "is no http:// or https:// URL"),
        ({"url": "http://host:99999"}, "port out of range"),
        ({"url": f"http://user:{KEY}@host"}, "put a key into api_key_env"),
        ({"url": f"http://host/?key={KEY}"}, "put a key into api_key_env"),
        ({"api_key_env": "A", "api_key_file": "b"}, "exclude each other"),
        ({"label": "good"}, "for vllm_classify it must be the index of a class"),
        ({"api": "tei_predict", "label": 1}, "for tei_predict it must be the name of a class"),
        ({"api": "vllm_score", "label": 1}, "must be left out"),
        ({"pair": True}, "pair is for tei_predict"),
        ({"api": "rerank"}, "the api: vllm_classify"),
    ],
)
def test_options_that_do_not_fit_are_refused_by_field(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError) as refused:
        make("http://host", **options)
    assert problem.lower() in str(refused.value).lower()
    assert KEY not in str(refused.value)


# --------------------------------------------------------------------------------------------------------- the service


def test_through_a_server_as_any_other_scorer(serve: Callable[..., ServerProcess]) -> None:
    with running(classify) as engine:
        server = serve({"type": "endpoint", "name": "rm", "url": engine.url, "api": "vllm_classify"})
        with RewardClient(server.endpoint) as client:
            answer = client.score(make_group(["a", "bb"], prompt=""))
    assert [score.value for score in answer.scorers[0].scores] == [1.5, 2.5]
