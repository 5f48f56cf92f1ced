"""Completions that are sent one by one, through a real server: they are scored as one group, or not at all."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from reward_server import wire
from reward_server.types import Completion, Sample, SampleScores
from tests.support.builders import make_group
from tests.support.served import PAGE, Caller, misbehaving, page, page_where, served
from tests.support.waiting import until

RANK = """
def rank(group):
    order = sorted(range(len(group)), key=lambda index: len(group.completions[index].content))
    return [float(order.index(index)) for index in range(len(group))]

def tally(completions, log_metric, log_extra, answer, **_):
    with open({log!r}, "a") as file:
        file.write(str(len(completions)) + "\\n")
    log_metric("count", float(len(completions)))
    log_extra("upper", [completion.upper() for completion in completions])
    return [float(len(completion)) for completion in completions]
"""


@pytest.fixture
def scorers(tmp_path: Path) -> list[dict[str, Any]]:
    """A scorer that compares the completions of a group, and one that writes down how often it was called."""
    (code := tmp_path / "rank.py").write_text(RANK.format(log=str(tmp_path / "tally")))
    return [
        {"type": "group_function", "name": "rank", "function": f"{code}:rank"},
        {"type": "function", "name": "tally", "function": f"{code}:tally", "weight": 0.5},
    ]


def calls(tmp_path: Path) -> list[int]:
    """The sizes of the groups that `tally` was called with."""
    return [int(line) for line in (tmp_path / "tally").read_text().split()]


def make_sample(index: int, text: str, of: int = 3, **names: Any) -> Sample:
    return Sample("p", Completion(text, columns={"answer": "4"}), of, index, **{"group_id": "g", **names})


async def ask(caller: Caller, sample: Sample, timeout_s: float = 30, **metadata: str) -> SampleScores:
    call = caller.stub.ScoreCompletion(wire.encode_sample(sample), timeout=timeout_s, metadata=tuple(metadata.items()))
    return wire.decode_sample_scores(await call)


async def refusal(caller: Caller, sample: Sample, **metadata: str) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ask(caller, sample, **metadata)
    return caught.value.code(), caught.value.details() or ""


def value(answer: SampleScores, scorer: int = 0) -> float | None:
    [score] = answer.scores.scorers[scorer].scores
    return score.value


def outcomes(answers: Sequence[SampleScores]) -> list[str]:
    return [score.status.name for answer in answers for score in answer.scores.scorers[0].scores]


async def test_samples_are_scored_as_one_group_and_each_caller_gets_its_own(
    scorers: list[dict[str, Any]], tmp_path: Path
) -> None:
    async with served(*scorers, records={"path": str(tmp_path / "records")}) as caller:
        texts = ["aaa", "a", "aa"]
        answers = await asyncio.gather(*(ask(caller, make_sample(i, text)) for i, text in enumerate(texts)))
        again = await ask(caller, make_sample(1, "a"))
        whole = await caller.score(
            make_group(texts, columns={"answer": "4"}, group_id="another", scorers=("rank", "tally"))
        )
    assert [value(answer) for answer in answers] == [2.0, 0.0, 1.0]
    assert [answer.scores.rewards() for answer in answers] == [[3.5], [0.5], [2.0]]  # rank + length / 2
    assert {(answer.group_size, answer.scores.group_id) for answer in answers} == {(3, "g")}
    assert answers[0].scores.scorers[1].metrics == {"count": 3.0}
    assert answers[0].scores.scorers[1].extra == {"upper": ["AAA"]}
    assert again == answers[1]  # remembered
    assert calls(tmp_path) == [3, 3]
    assert [score.value for score in whole.scorers[0].scores] == [2.0, 0.0, 1.0]
    records = [json.loads(line) for line in (tmp_path / "records").read_text().splitlines()]
    assert [(record["group_id"], len(record["completions"])) for record in records] == [("g", 3), ("another", 3)]


async def test_an_incomplete_group_is_a_timeout_that_says_how_many_came(scorers: list[dict[str, Any]]) -> None:
    async with served(*scorers, metrics=PAGE) as caller:
        answers = await asyncio.gather(*(ask(caller, make_sample(i, "a", gather_s=0.2)) for i in (0, 2)))
        late = await ask(caller, make_sample(1, "a", gather_s=20))
        numbers = await page(caller)
    assert outcomes([*answers, late]) == ["TIMEOUT"] * 3
    [score] = answers[0].scores.scorers[1].scores
    assert score.message.startswith("2 of the 3 completions of group 'g' came to this server within 0.2")
    assert answers[0].group_size == 0
    assert answers[0].scores.rewards() == [None]
    assert numbers("cohorts_finished_total", outcome="timeout") == 1
    assert numbers("cohorts") == 0


async def test_an_incomplete_group_is_scored_as_it_is_if_the_callers_say_so(scorers: list[dict[str, Any]]) -> None:
    async with served(*scorers) as caller:
        samples = [make_sample(i, "a" * (3 - i), gather_s=0.2, score_incomplete=True) for i in (0, 2)]
        answers = await asyncio.gather(*(ask(caller, sample) for sample in samples))
        late = await ask(caller, make_sample(1, "aa", score_incomplete=True))
    assert [(value(answer), answer.group_size) for answer in answers] == [(1.0, 2), (0.0, 2)]
    assert outcomes([late]) == ["TIMEOUT"]


async def test_a_caller_that_leaves_leaves_its_sample_behind_and_may_come_again(scorers: list[dict[str, Any]]) -> None:
    async with served(*scorers) as caller:
        leaving = caller.stub.ScoreCompletion(wire.encode_sample(make_sample(0, "aaa")), timeout=30)
        first = asyncio.create_task(ask(caller, make_sample(1, "a")))
        await until(lambda: caller.server.calls == 2)
        leaving.cancel()
        await until(lambda: caller.server.calls == 1)
        answers = [
            *await asyncio.gather(first, ask(caller, make_sample(2, "aa"))),
            await ask(caller, make_sample(0, "aaa")),
        ]
    assert [value(answer) for answer in answers] == [0.0, 1.0, 2.0]


async def test_scoring_is_cancelled_when_all_callers_have_left() -> None:
    async with served(misbehaving("slow_async", place="loop"), metrics=PAGE) as caller:
        requests = [wire.encode_sample(make_sample(i, "sleep 600", of=2)) for i in range(2)]
        leaving = [caller.stub.ScoreCompletion(request, timeout=30) for request in requests]
        await page_where(caller, lambda seen: seen("scorer_groups", scorer="slow_async") == 1)
        for call in leaving:
            call.cancel()
        numbers = await page_where(caller, lambda seen: seen("cohorts_finished_total", outcome="dropped") == 1)
        assert numbers("scorer_groups", scorer="slow_async") == 0


async def test_two_calls_of_one_sample_get_one_answer(scorers: list[dict[str, Any]], tmp_path: Path) -> None:
    async with served(*scorers) as caller:
        samples = [make_sample(0, "a", of=2), make_sample(0, "a", of=2), make_sample(1, "bb", of=2)]
        answers = await asyncio.gather(*(ask(caller, sample) for sample in samples))
    assert [value(answer) for answer in answers] == [0.0, 0.0, 1.0]
    assert calls(tmp_path) == [2]


async def test_a_contradiction_costs_the_call_that_brings_it(scorers: list[dict[str, Any]]) -> None:
    async with served(*scorers) as caller:
        first = asyncio.create_task(ask(caller, make_sample(0, "a", of=2)))
        await until(lambda: caller.server.calls == 1)
        code, details = await refusal(caller, make_sample(0, "b", of=2))
        assert (code, details) == (
            grpc.StatusCode.INVALID_ARGUMENT,
            "group 'g': sample 0 came before with another prompt, completion or column; a group_id may not be "
            "used again in another step",
        )
        code, details = await refusal(caller, Sample("p", Completion("b"), 2, 1, group_id="g"))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert "needs the column 'answer'" in details
        await ask(caller, make_sample(1, "bb", of=2))
        assert value(await first) == 0.0


async def test_without_a_groups_name_a_completion_is_a_group_that_no_comparing_scorer_takes(
    scorers: list[dict[str, Any]],
) -> None:
    async with served(*scorers) as caller:
        code, details = await refusal(caller, make_sample(0, "a", of=1, group_id=""))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert "scorers ['rank'] compare the completions of a group" in details
        answer = await ask(caller, make_sample(0, "abc", of=1, group_id="", scorers=("tally",)))
    assert (value(answer), answer.group_size) == (3.0, 1)


@pytest.mark.parametrize(
    ("limits", "of", "code", "message"),
    [
        ({"max_completions": 2}, 3, grpc.StatusCode.OUT_OF_RANGE, "has 3 completions and this server takes 2"),
        ({"max_queued_completions": 4}, 3, grpc.StatusCode.RESOURCE_EXHAUSTED, "1 groups are being gathered"),
    ],
)
async def test_limits_hold_for_what_is_gathered(
    limits: dict[str, int], of: int, code: grpc.StatusCode, message: str
) -> None:
    async with served(misbehaving(), limits=limits) as caller:
        waiting = asyncio.create_task(ask(caller, make_sample(0, "a", of=2, group_id="first")))
        await until(lambda: caller.server.calls == 1)
        assert (await refusal(caller, make_sample(0, "a", of=of)))[0] is code
        assert message in (await refusal(caller, make_sample(0, "a", of=of)))[1]
        await ask(caller, make_sample(1, "a", of=2, group_id="first"))
        assert value(await waiting) == 1.0


async def test_a_draining_server_sends_the_callers_of_incomplete_groups_away_and_scores_the_complete_ones() -> None:
    async with served(misbehaving("slow_async", place="loop"), drain_grace_s=20) as caller:
        waiting = asyncio.create_task(refusal(caller, make_sample(0, "a", of=2, group_id="incomplete")))
        complete = [asyncio.create_task(ask(caller, make_sample(i, "sleep 0.5", of=2))) for i in range(2)]
        await until(lambda: caller.server.calls == 3)
        assert await caller.server.drain()
        assert (await waiting)[0] is grpc.StatusCode.UNAVAILABLE
        assert [value(answer) for answer in await asyncio.gather(*complete)] == [9.0, 9.0]


async def test_a_quota_counts_the_group_and_tokens_keep_groups_apart(tmp_path: Path) -> None:
    (tokens := tmp_path / "tokens").write_text("alice: aaa\nbob: bbb\n")
    quotas = {"alice": {"completions_per_minute": 2}}
    async with served(misbehaving(), tokens_file=str(tokens), quotas=quotas) as caller:
        assert (await refusal(caller, make_sample(0, "a")))[0] is grpc.StatusCode.UNAUTHENTICATED
        alice, bob = {"authorization": "Bearer aaa"}, {"authorization": "Bearer bbb"}
        asked = [ask(caller, make_sample(i, "a", of=2), **alice) for i in range(2)]
        lone = asyncio.create_task(ask(caller, make_sample(0, "b", of=2, gather_s=0.3), **bob))
        assert outcomes(await asyncio.gather(*asked, lone)) == ["OK", "OK", "TIMEOUT"]
        refused = [refusal(caller, make_sample(i, "a", of=2, group_id="h"), **alice) for i in range(2)]
        assert [code for code, _ in await asyncio.gather(*refused)] == [grpc.StatusCode.RESOURCE_EXHAUSTED] * 2
