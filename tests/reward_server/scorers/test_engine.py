"""An engine behind HTTP: what becomes of each way in which a request fails, and the API key."""

from __future__ import annotations

import asyncio
import logging
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import Response

from reward_server.config import digest_of
from reward_server.errors import ScorerLoadError
from reward_server.scorers.engine_errors import retry_after_s
from reward_server.types import Status
from tests.support.builders import make_group
from tests.support.engines import Asked, FakeEngine, free_port, running, serving
from tests.support.reward_engines import (
    KEY,
    classify,
    in_turn,
    loaded,
    make,
    scores,
    values,
    vllm_error,
)


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


@pytest.mark.parametrize(
    "error",
    [
        {"error": {"message": "slow down", "code": 429}},
        {"error": {"message": "Provider returned error", "code": 502, "metadata": {}}},
        {"error": {"message": "overloaded", "type": "overloaded_error"}},
        {"error": {"message": "oops", "type": "server_error", "code": None}},
        {"error": "the queue is full", "error_type": "Overloaded"},
        {"object": "error", "message": "oops", "code": 500},
    ],
)
async def test_an_error_that_comes_with_200_is_tried_again_if_that_can_help(error: dict[str, Any]) -> None:
    with running(in_turn(error)) as engine:
        assert values(await scores(make(engine), make_group(["a"], prompt=""))) == [1.5]
    assert len(engine.asked) == 2


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        ({"error": {"message": "too long", "code": 400}}, "200 with an error: too long"),
        ({"error": {"message": "no such model", "code": 404}}, "200 with an error: no such model"),
        ({"error": {"message": f"bad key {KEY}", "code": 401}}, "200 with error 401: it refuses the key"),
        ({"error": f"invalid {KEY}", "error_type": "Validation"}, "200 with an error: invalid …"),
        ({"error": {"message": "odd"}}, "200 with an error: odd"),
    ],
)
async def test_an_error_that_comes_with_200_and_stays_fails_in_the_engines_words(
    error: dict[str, Any], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENGINE_KEY", KEY)
    with running(lambda _: error) as engine:
        (score,) = await scores(make(engine, api_key_env="ENGINE_KEY"), make_group(["a"]))
    assert score.status is Status.FAILED
    assert reason in score.message
    assert KEY not in score.message
    assert len(engine.asked) == 1


async def test_an_engine_on_this_machine_is_asked_without_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    with running(classify) as engine:
        assert values(await scores(make(engine, timeout_s=2), make_group(["a"], prompt=""))) == [1.5]


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
    assert score.status in (Status.FAILED, Status.TIMEOUT)  # after a 500 it is asked again, until the deadline


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
