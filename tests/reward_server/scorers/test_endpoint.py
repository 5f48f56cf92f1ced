"""The scorer `endpoint`: what vLLM and TEI are asked, and what becomes of each way in which they fail.

Answers have the shapes of vLLM (vllm/entrypoints/pooling) and TEI (router/src/http), as of late 2026.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import JSONResponse, Response

from reward_server.client import RewardClient
from reward_server.config import digest_of
from reward_server.errors import ConfigError, InvalidGroupError, ScorerLoadError
from reward_server.launch import ServerProcess
from reward_server.scorers.base import Result, Scorer
from reward_server.scorers.engine_errors import retry_after_s
from reward_server.scorers.registry import build, parse_options
from reward_server.types import Completion, Group, Score, Status
from tests.support.builders import make_group
from tests.support.engines import Asked, FakeEngine, free_port, running, serving

KEY = "sk-very-secret-0123456789"


def make(engine: FakeEngine | str, api: str = "vllm_classify", base_dir: Path | None = None, **options: Any) -> Scorer:
    url = engine if isinstance(engine, str) else engine.url
    mapping = {"type": "endpoint", "name": "rm", "url": url, "api": api, "timeout_s": 10, **options}
    return build(parse_options(mapping, base_dir=base_dir))


@contextlib.asynccontextmanager
async def loaded(scorer: Scorer) -> AsyncIterator[Scorer]:
    scorer.load()
    try:
        yield scorer
    finally:
        closing = scorer.close()
        assert closing is not None
        await closing


async def scores(scorer: Scorer, group: Group) -> tuple[Score, ...]:
    async with loaded(scorer):
        answer = scorer.score(group)
        assert not isinstance(answer, Result)
        return (await answer).scores


def values(scored: tuple[Score, ...]) -> list[float | None]:
    assert all((score.status is Status.OK) == (score.value is not None) for score in scored)
    return [score.value for score in scored]


def classify(asked: Asked) -> Any:
    """vLLM's /classify: the logit is the text's length; rows in another order, as nothing forbids."""
    texts = asked.body.get("input") or ["".join(m["content"] for m in asked.body["messages"])]
    data = [{"index": i, "label": "LABEL_0", "probs": [len(t) + 0.5], "num_classes": 1} for i, t in enumerate(texts)]
    return {"id": "classify-1", "object": "list", "created": 1, "model": "rm", "data": data[::-1], "usage": {}}


def score_pairs(asked: Asked) -> Any:
    """vLLM's /score."""
    ones, twos = asked.body["text_1"], asked.body["text_2"]
    ones = [ones] * len(twos) if isinstance(ones, str) else ones
    pairs = enumerate(zip(ones, twos, strict=True))
    data = [{"index": i, "object": "score", "score": len(a) + len(b) / 10} for i, (a, b) in pairs]
    return {"id": "score-1", "object": "list", "created": 1, "model": "rm", "data": data, "usage": {}}


def predict(asked: Asked) -> Any:
    """TEI's /predict of two classes, the likelier first."""
    answers = []
    for parts in asked.body["inputs"]:
        good = float(len("|".join(parts)))
        both = [{"label": "good", "score": good}, {"label": "bad", "score": 3.0}]
        answers.append(sorted(both, key=lambda one: -float(one["score"])))
    return answers


def vllm_error(code: int, message: str, **headers: str) -> Response:
    error = {"message": message, "type": "BadRequestError", "param": None, "code": code}
    return JSONResponse({"error": error}, code, headers={name.replace("_", "-"): v for name, v in headers.items()})


def in_turn(*answers: Any, then: Callable[[Asked], Any] = classify) -> Callable[[Asked], Any]:
    """Each answer once, then a function's."""
    left = list(answers)
    return lambda asked: left.pop(0) if left else then(asked)


# ------------------------------------------------------------------------------------------------------------ the APIs


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


# ------------------------------------------------------------------------------------------------------------ failures


async def test_one_completion_that_the_engine_refuses_costs_its_own_score() -> None:
    def picky(asked: Asked) -> Any:
        longest = max(len(text) for text in asked.body["input"])
        return vllm_error(400, f"maximum context length is 50, not {longest}") if longest > 50 else classify(asked)

    completions = ["a", "b" * 100, *"cdefgh"]
    with running(picky) as engine:
        scored = await scores(make(engine), make_group(completions, prompt=""))
    assert [score.status for score in scored] == [Status.OK, Status.FAILED, *[Status.OK] * 6]
    assert "400 Bad Request: maximum context length is 50, not 100" in scored[1].message
    assert len(engine.asked) == 7  # 8, its halves, their halves, and the pair


@pytest.mark.parametrize(
    "answer",
    [
        vllm_error(429, "slow down", retry_after="0"),
        vllm_error(503, "loading"),
        vllm_error(500, "CUDA error"),
        Response("<html>bad gateway</html>", 502),
    ],
)
async def test_what_may_pass_is_tried_again(answer: Response) -> None:
    with running(in_turn(answer, answer)) as engine:
        assert values(await scores(make(engine), make_group(["a"], prompt=""))) == [1.5]
    assert len(engine.asked) == 3


@pytest.mark.parametrize("code", [400, 401, 403, 404, 422])
async def test_what_will_not_pass_is_asked_once(code: int) -> None:
    with running(lambda _: vllm_error(code, "no")) as engine:
        (score,) = await scores(make(engine), make_group(["a"]))
    assert score.status is Status.FAILED
    assert len(engine.asked) == 1


async def test_a_wrong_model_or_url_does_not_split_the_group() -> None:
    with running(lambda _: vllm_error(404, "The model `x` does not exist.")) as engine:
        scored = await scores(make(engine, model="x"), make_group(list("abcdefgh")))
    assert len(engine.asked) == 1
    assert len({score.message for score in scored}) == 1
    assert "404 Not Found: The model `x` does not exist.; see url, and model" in scored[0].message


async def test_retry_after_is_honoured() -> None:
    with running(in_turn(vllm_error(429, "slow down", retry_after="1"))) as engine:
        await scores(make(engine), make_group(["a"]))
    first, second = engine.asked
    assert second.began - first.began >= 1.0


async def test_a_wait_beyond_the_deadline_is_not_begun() -> None:
    with running(lambda _: vllm_error(429, "quota", retry_after="3600")) as engine:
        began = time.monotonic()
        (score,) = await scores(make(engine), make_group(["a"]))
    assert time.monotonic() - began < 5
    assert score.status is Status.FAILED
    assert "429 Too Many Requests: quota, and asks to come back in 3600 s; given up at attempt 1" in score.message


async def test_an_engine_that_hangs_is_a_timeout_of_what_is_late_only() -> None:
    def slow_for_long(asked: Asked) -> Any:
        if "slow" in asked.body["input"][0]:
            time.sleep(1.5)
        return classify(asked)

    with running(slow_for_long) as engine:
        scorer = make(engine, batch_size=1, timeout_s=0.8)
        late, in_time = await scores(scorer, make_group(["slow", "a"], prompt=""))
    assert (late.status, in_time.status) == (Status.TIMEOUT, Status.OK)
    assert "no answer before the deadline" in late.message


async def test_an_engine_that_is_down_is_tried_until_the_deadline_and_found_when_it_is_up() -> None:
    port = free_port()
    (down,) = await scores(make(f"http://127.0.0.1:{port}", timeout_s=1), make_group(["a"]))
    assert down.status is Status.FAILED
    assert "given up at attempt" in down.message
    assert "onnect" in down.message  # the system's own words
    async with loaded(make(f"http://127.0.0.1:{port}")) as scorer:
        asking = asyncio.ensure_future(scorer.score(make_group(["a"], prompt="")))  # type: ignore[arg-type]
        await asyncio.sleep(0.3)
        with serving(FakeEngine(classify), port):
            assert (await asking).scores[0].value == 1.5


@pytest.fixture
def certificate(tmp_path: Path) -> dict[str, str]:
    """One for 127.0.0.1 that is signed by nobody but itself, as uvicorn is told of it."""
    if shutil.which("openssl") is None:
        pytest.skip("the openssl command makes the certificate, and is not here")
    new = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -keyout key -out cert -subj /CN=x"
    command = ["openssl", *new.split(), "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=30)
    return {"ssl_certfile": str(tmp_path / "cert"), "ssl_keyfile": str(tmp_path / "key")}


async def test_a_certificate_that_nobody_vouches_for_is_refused_at_once(
    certificate: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    with serving(FakeEngine(classify), port, **certificate):
        (refused,) = await scores(make(f"https://127.0.0.1:{port}"), make_group(["a"], prompt=""))
        monkeypatch.setenv("SSL_CERT_FILE", certificate["ssl_certfile"])
        (trusted,) = await scores(make(f"https://127.0.0.1:{port}"), make_group(["a"], prompt=""))
    assert refused.status is Status.FAILED
    assert "CERTIFICATE_VERIFY_FAILED" in refused.message
    assert "attempt" not in refused.message
    assert trusted.value == 1.5


async def test_a_group_whose_caller_is_gone_hangs_up_so_that_the_engine_can_stop() -> None:
    with running(lambda asked: time.sleep(0.3) or classify(asked)) as engine:
        async with loaded(make(engine)) as scorer:
            asking = asyncio.ensure_future(scorer.score(make_group(["a"])))  # type: ignore[arg-type]
            await asyncio.sleep(0.1)
            asking.cancel()
            await asyncio.sleep(0.4)
    assert engine.hung_up == [True]


@pytest.mark.parametrize(
    "answer",
    [
        Response("not json"),
        pytest.param(Response("[" * 100_000), id="deep"),
        [],
        {"data": "no"},
        {"data": []},
        {"data": [{"index": 0, "probs": [1.0]}]},
        {"data": [{"index": 0, "probs": [1.0]}, {"index": 0, "probs": [1.0]}]},
        {"data": [{"index": 0, "probs": [1.0]}, {"index": 2, "probs": [1.0]}]},
        {"data": [{"index": 0, "probs": []}, {"index": 1, "probs": []}]},
        {"data": [{"index": [], "probs": [1.0]}, {"index": 1, "probs": [1.0]}]},
    ],
)
async def test_a_malformed_answer_is_failed_never_a_number(answer: Any) -> None:
    with running(lambda _: answer) as engine:
        assert [score.status for score in await scores(make(engine), make_group())] == [Status.FAILED] * 2


@pytest.mark.parametrize("number", ["NaN", "null", '"0.5"', "Infinity", "{}"])
async def test_a_number_that_is_none_is_invalid_and_leaves_its_siblings(number: str) -> None:
    body = f'{{"data": [{{"index": 0, "probs": [{number}]}}, {{"index": 1, "probs": [2]}}]}}'
    with running(lambda _: Response(body, media_type="application/json")) as engine:
        bad, good = await scores(make(engine), make_group())
    assert bad.status is Status.INVALID
    assert good.value == 2.0


async def test_a_lone_surrogate_is_sent_as_a_question_mark() -> None:
    with running(classify) as engine:
        await scores(make(engine), make_group(["cut \ud83d"], prompt=""))
    assert engine.asked[0].body["input"] == ["cut ?"]


# ------------------------------------------------------------------------------------------------------------- the key


@pytest.mark.parametrize("code", [400, 401, 500])
async def test_the_key_is_sent_and_shown_nowhere(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, code: int
) -> None:
    monkeypatch.setenv("ENGINE_KEY", KEY)
    with running(lambda asked: vllm_error(code, f"bad key {asked.headers['authorization']}")) as engine:
        with caplog.at_level(logging.DEBUG):
            scorer = make(engine, api_key_env="ENGINE_KEY", timeout_s=0.5)
            (score,) = await scores(scorer, make_group(["a"]))
    assert engine.asked[0].headers["authorization"] == f"Bearer {KEY}"
    said = f"{score.message} {caplog.text} {scorer.version} {scorer.options!r} {scorer.options.model_dump_json()}"
    assert KEY not in said
    assert score.status is Status.FAILED


def test_another_key_is_no_other_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    digests = []
    for key in (KEY, "other"):
        monkeypatch.setenv("ENGINE_KEY", key)
        scorer = make("http://127.0.0.1:9", api_key_env="ENGINE_KEY")
        scorer.load()
        digests.append(digest_of([scorer.options], [scorer.version]))
    assert len(set(digests)) == 1


async def test_a_key_file_may_change_while_it_serves(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("first\n")
    with running(classify) as engine:
        async with loaded(make(engine, api_key_file="key", base_dir=tmp_path)) as scorer:
            await scorer.score(make_group())  # type: ignore[misc]
            (tmp_path / "key").write_text("second\n")
            await scorer.score(make_group())  # type: ignore[misc]
            (tmp_path / "key").write_text("")
            await scorer.score(make_group())  # type: ignore[misc]
    keys = [asked.headers["authorization"] for asked in engine.asked]
    assert keys == ["Bearer first", "Bearer second", "Bearer second"]


def test_a_missing_key_is_named_when_the_server_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ENGINE_KEY", raising=False)
    with pytest.raises(ScorerLoadError, match="scorer 'rm': api_key_env: ENGINE_KEY holds no key"):
        make("http://h", api_key_env="ENGINE_KEY").load()
    with pytest.raises(ScorerLoadError, match=r"api_key_file: cannot read .*/none: No such file"):
        make("http://h", api_key_file="none", base_dir=tmp_path).load()


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
        ({"api": "rerank"}, "what is asked: vllm_classify"),
    ],
)
def test_options_that_do_not_fit_are_refused_by_field(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError) as refused:
        make("http://host", **options)
    assert problem.lower() in str(refused.value).lower()
    assert KEY not in str(refused.value)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "2"}, 2.0),
        ({"retry-after": "-1"}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after-ms": "1500", "retry-after": "2"}, 1.5),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
    ],
)
def test_retry_after_is_seconds_milliseconds_or_a_date(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after_s(headers) == seconds


# --------------------------------------------------------------------------------------------------------- the service


def test_through_a_server_as_any_other_scorer(serve: Callable[..., ServerProcess]) -> None:
    with running(classify) as engine:
        server = serve({"type": "endpoint", "name": "rm", "url": engine.url, "api": "vllm_classify"})
        with RewardClient(server.endpoint) as client:
            answer = client.score(make_group(["a", "bb"], prompt=""))
    assert [score.value for score in answer.scorers[0].scores] == [1.5, 2.5]
