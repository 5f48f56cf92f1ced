"""The scorer `judge`: its calls (form, order, concurrency, spending) and its configuration."""

from __future__ import annotations

import asyncio
import itertools
import logging
import pickle
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import JSONResponse

from reward_server.cli.commands import check
from reward_server.client import RewardClient
from reward_server.config import config_from_mapping
from reward_server.errors import ConfigError, ScorerLoadError
from reward_server.execution.executors import LoopExecutor
from reward_server.launch import ServerProcess
from reward_server.types import Status
from tests.support.builders import make_group
from tests.support.engines import Asked, FakeEngine, running
from tests.support.judges import (
    grades_good,
    loaded,
    make,
    prefers_long,
    scores,
    texts_of,
    values,
)

# ------------------------------------------------------------------------------------- order, concurrency and spending


def common_prefix(texts: list[str]) -> str:
    return "".join(a[0] for a in itertools.takewhile(lambda column: len(set(column)) == 1, zip(*texts, strict=False)))


@pytest.mark.parametrize("mode", ["pointwise", "pairwise"])
async def test_calls_of_a_group_share_all_but_what_is_judged_and_the_first_goes_ahead(mode: str) -> None:
    answers = {"pointwise": grades_good, "pairwise": prefers_long}
    with running(lambda asked: time.sleep(0.05) or answers[mode](asked)) as engine:
        await scores(make(engine, mode=mode), make_group(["a", "bb", "ccc"], prompt="the long prompt"))
    assert len({asked.body["messages"][0]["content"] for asked in engine.asked}) == 1
    shared = common_prefix([asked.body["messages"][1]["content"] for asked in engine.asked])
    assert "The more good the better." in shared
    assert re.search(r"BEGIN prompt \w+\nthe long prompt\nEND prompt \w+\n\nBEGIN (first )?answer ", shared)
    assert min(asked.began for asked in engine.asked[1:]) >= engine.ended[0]


async def test_without_warm_prefix_all_calls_go_at_once() -> None:
    with running(lambda asked: time.sleep(0.2) or grades_good(asked)) as engine:
        await scores(make(engine, warm_prefix=False), make_group(["a", "bb", "ccc"]))
    assert max(asked.began for asked in engine.asked) < engine.ended[0]


class Counting:
    """A judge that knows how many calls were in flight at most."""

    def __init__(self) -> None:
        self.most = self._now = 0
        self._lock = threading.Lock()

    def __call__(self, asked: Asked) -> Any:
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)
        time.sleep(0.02)
        with self._lock:
            self._now -= 1
        return grades_good(asked)


async def test_no_more_calls_than_allowed_are_in_flight_and_groups_stay_together() -> None:
    judge = Counting()
    with running(judge) as engine:
        executor = LoopExecutor(make(engine, concurrent_calls=3, concurrent_groups=1))
        await executor.load()
        groups = [make_group(list("abcdef"), prompt=f"prompt {number}") for number in range(3)]
        timed = await asyncio.gather(*(executor.run(group) for group in groups))
        await executor.close()
    assert judge.most == 3
    assert all(score.status is Status.OK for one in timed for score in one.result.scores)
    order = [texts_of(asked)["prompt"] for asked in engine.asked]
    assert [prompt for prompt, _ in itertools.groupby(order)] == ["prompt 0", "prompt 1", "prompt 2"]


async def test_beyond_its_budget_of_calls_scores_are_failed_and_nothing_is_asked() -> None:
    with running(grades_good) as engine:
        async with loaded(make(engine, budget_requests=3)) as scorer:
            first = (await scorer.score(make_group(list("abcde")))).scores
            second = (await scorer.score(make_group(["good"]))).scores
    assert [score.status for score in first] == [Status.OK] * 3 + [Status.FAILED] * 2
    assert first[4].message == ("scorer 'judge' has spent its budget_requests = 3; raise it and start the server again")
    assert second[0].status is Status.FAILED
    assert len(engine.asked) == 3


async def test_beyond_its_budget_of_tokens_likewise_by_what_the_endpoint_says_it_used() -> None:
    # Each call is estimated at about 400 + 100 tokens, and says that it took 1,000: the third would begin at 2,000.
    with running(lambda asked: {**grades_good(asked), "usage": {"total_tokens": 1000}}) as engine:
        scorer = make(engine, budget_tokens=2100, max_tokens=100, concurrent_calls=1)
        scored = await scores(scorer, make_group(list("abcd")))
    assert [score.status for score in scored] == [Status.OK] * 2 + [Status.FAILED] * 2
    assert "budget_tokens = 2100 (2000 used, the next call about " in scored[3].message
    assert scorer.budget.tokens == 2000


async def test_what_was_not_billed_is_not_spent_and_what_may_have_been_is() -> None:
    refuse = JSONResponse({"error": {"message": "too long"}}, 400)
    with running(lambda _: refuse) as engine:
        await scores(refused := make(engine, budget_tokens=10_000), make_group(["a"]))
    with running(lambda asked: time.sleep(0.6) or grades_good(asked)) as engine:
        await scores(late := make(engine, budget_tokens=10_000, timeout_s=0.4), make_group(["a"]))
    assert refused.budget.tokens == 0
    assert late.budget.tokens > 1000


# ------------------------------------------------------------------------------------------------------- configuration


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"rubric": None}, "a judge needs one rubric"),
        ({"rubric": "x", "rubric_column": "y"}, "a judge needs one rubric"),
        ({"scale": [5, 5]}, "the highest grade must be 1 to 100 above the lowest"),
        ({"extra_body": {"messages": []}}, "messages is set by the scorer itself"),
        ({"mode": "setwise"}, "pointwise"),
    ],
)
def test_options_that_do_not_fit_are_refused_by_field(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        make("http://host/v1", **options)


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("user: '{{ prompt }}'", r"it never shows \{\{ completion \}\}"),
        ("user: '{{ completoin }}'", "mode pointwise: there is no 'completoin', did you mean 'completion'"),
        ("user: '{{ completion'", "not a Jinja template"),
        ("system: x", "must hold the keys system and user"),
        ("user: [1]", "must be text"),
        ("a: b: c", "not YAML"),
        (None, "there is no such file"),
    ],
)
def test_a_template_that_cannot_be_used_is_refused_when_the_server_starts(
    tmp_path: Path, template: str | None, problem: str
) -> None:
    if template is not None:
        (tmp_path / "t.yaml").write_text(template)
    with pytest.raises(ScorerLoadError, match=problem):
        make("http://host/v1", tmp_path, template="t.yaml").load()


async def test_another_template_is_another_version(tmp_path: Path) -> None:
    versions = []
    for text in ("one", "two"):
        (tmp_path / "t.yaml").write_text(f"user: '{text} {{{{ completion }}}}'")
        async with loaded(make("http://host/v1", tmp_path, template="t.yaml")) as scorer:
            versions.append(scorer.version)
    assert versions[0] != versions[1]


def test_through_a_server_with_a_key_beside_another_scorer(
    serve: Callable[..., ServerProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_KEY", "sk-1")
    with running(grades_good) as engine:
        judge = make(engine).options.model_dump(mode="json", exclude_unset=True)
        length = {"type": "length", "name": "short", "max": 10}
        server = serve({**judge, "api_key_env": "JUDGE_KEY"}, length)
        with RewardClient(server.endpoint) as client:
            answer = client.score(make_group(["good", "bad"]))
    assert [score.value for score in answer.scorers[0].scores] == [pytest.approx(1 / 9), 0.0]
    assert {asked.headers["authorization"] for asked in engine.asked} == {"Bearer sk-1"}


# --------------------------------------------------------------------------------------------------- structured output


def knows(*forms: str) -> Callable[[Asked], Any]:
    """A judge behind an engine that refuses every response_format but these, as vLLM and Ollama word it."""

    def answer(asked: Asked) -> Any:
        form = asked.body.get("response_format", {}).get("type", "none")
        if form in forms:
            return grades_good(asked)
        message = f"response_format.type: '{form}' is not supported"
        return JSONResponse({"error": {"message": message, "code": 400}}, 400)

    return answer


def forms_asked(engine: FakeEngine) -> list[str]:
    return [asked.body.get("response_format", {}).get("type", "none") for asked in engine.asked]


@pytest.mark.parametrize(
    ("known", "tried"),
    [
        (("json_schema", "json_object", "none"), ["json_schema"]),
        (("json_object", "none"), ["json_schema", "json_object"]),
        (("none",), ["json_schema", "json_object", "none"]),
    ],
)
async def test_the_response_format_that_the_endpoint_takes_is_found_out_once(
    known: tuple[str, ...], tried: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    with running(knows(*known)) as engine, caplog.at_level(logging.INFO, "reward_server"):
        async with loaded(make(engine, warm_prefix=False)) as scorer:
            assert scorer.notes == ("structured_output auto: not known yet, since no call was answered",)
            assert values((await scorer.score(make_group(["good"]))).scores) == [1 / 9]
            found = len(engine.asked)
            await scorer.score(make_group(["good", "bad"]))
    assert forms_asked(engine)[:found] == tried
    assert forms_asked(engine)[found:] == [known[0]] * 2
    assert scorer.notes[0].startswith(f"structured_output auto: {known[0]}")
    assert [record.message for record in caplog.records if "structured_output" in record.message] == [
        f"scorer 'judge': {scorer.notes[0]}"
    ]


async def test_calls_that_are_refused_together_find_it_out_together() -> None:
    with running(knows("none")) as engine:
        scored = await scores(make(engine, warm_prefix=False), make_group(["good"] * 6))
    assert values(scored) == [1 / 9] * 6
    # Six calls in json_schema, one that finds the form by two more, and the five others in it.
    assert sorted(forms_asked(engine)) == ["json_object"] + ["json_schema"] * 6 + ["none"] * 6


async def test_a_refusal_that_has_another_cause_settles_nothing() -> None:
    def answer(asked: Asked) -> Any:
        too_long = JSONResponse({"error": {"message": "maximum context length is 50"}}, 400)
        return too_long if len(texts_of(asked)["answer"]) > 50 else grades_good(asked)

    with running(answer) as engine:
        long, short = await scores(make(engine), make_group(["x" * 51, "good"]))
    assert (long.status, short.value) == (Status.FAILED, 1 / 9)
    assert "maximum context length is 50" in long.message
    assert forms_asked(engine) == ["json_schema", "json_object", "none", "json_schema"]


@pytest.mark.parametrize("form", ["json_schema", "json_object"])
async def test_a_form_that_is_set_is_not_left(form: str) -> None:
    with running(knows("none")) as engine:
        (score,) = await scores(make(engine, structured_output=form), make_group(["good"]))
    assert score.status is Status.FAILED
    assert f"'{form}' is not supported" in score.message
    assert forms_asked(engine) == [form]


def test_the_old_name_of_the_option_is_still_understood() -> None:
    old, new = (make("http://host/v1", **{name: "none"}) for name in ("structured", "structured_output"))
    assert old.options == new.options
    assert pickle.loads(pickle.dumps(old.options)) == new.options


async def test_each_call_in_another_form_counts_against_the_budget() -> None:
    with running(knows("none")) as engine:
        (score,) = await scores(make(engine, budget_requests=2), make_group(["good"]))
    assert "has spent its budget_requests = 2" in score.message
    assert len(engine.asked) == 2


def test_check_says_which_form_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with running(knows("json_object", "none")) as engine:
        judge = make(engine).options.model_dump(mode="json", exclude_unset=True)
        assert check(config_from_mapping({"scorers": [judge]}, tmp_path), sample=None) == 0
    assert (
        "judge: structured_output auto: json_object, since the endpoint refuses json_schema" in capsys.readouterr().out
    )
