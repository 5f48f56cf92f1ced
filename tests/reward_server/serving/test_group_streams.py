"""ScoreGroups at the server: each group of a call is served as a ScoreGroup call of its own, by raw stubs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Sequence
from pathlib import Path

import grpc
import grpc.aio
import pytest

from reward_server import wire, wire_groups
from reward_server.types import Group, GroupScores
from reward_server.wire_groups import Failure
from tests.support.builders import make_group
from tests.support.served import LENGTH, PAGE, Caller, misbehaving, page, page_where, served, values

Answers = list[list[tuple[int, GroupScores | Failure]]]
"""The answers of each message of the stream: the number of the group, and what became of it."""


def calls_of(groups: Sequence[Group | bytes]) -> wire_groups.pb.SerializedScoreGroupsRequest:
    encoded = [group if isinstance(group, bytes) else wire.encode_group(group).SerializeToString() for group in groups]
    return wire_groups.encode_calls([(group, ()) for group in encoded])


def begin(caller: Caller, *groups: Group | bytes, timeout_s: float = 30, token: str = "") -> grpc.aio.UnaryStreamCall:
    metadata = (("authorization", f"Bearer {token}"),) if token else ()
    return caller.stub.ScoreGroups(calls_of(groups), timeout=timeout_s, metadata=metadata)


async def read(call: AsyncIterable[wire_groups.pb.ScoreGroupsResponse]) -> Answers:
    return [[(answer.index, decoded(answer)) for answer in message.answers] async for message in call]


def decoded(answer: wire_groups.pb.GroupAnswer) -> GroupScores | Failure:
    outcome = wire_groups.decode_answer(answer)
    return outcome if isinstance(outcome, Failure) else wire.decode_scores(outcome)


async def ask(caller: Caller, *groups: Group | bytes) -> dict[int, GroupScores | Failure]:
    """What became of each group, each of which is answered once."""
    answers = [answer for message in await read(begin(caller, *groups)) for answer in message]
    assert sorted(index for index, _ in answers) == list(range(len(groups)))
    return dict(answers)


def first_values(answer: GroupScores | Failure) -> list[float | None]:
    assert isinstance(answer, GroupScores), answer
    return values(answer)


async def test_each_group_has_its_own_scores() -> None:
    async with served(misbehaving()) as caller:
        answers = await ask(caller, *(make_group(["a" * n, "b"], group_id=f"g{n}") for n in range(1, 20)))
    assert [first_values(answers[n]) for n in range(19)] == [[n + 1.0, 1.0] for n in range(19)]
    assert [answers[n].group_id for n in range(19)] == [f"g{n + 1}" for n in range(19)]  # type: ignore[union-attr]


async def test_an_answer_is_sent_while_other_groups_are_still_being_scored() -> None:
    async with served(misbehaving("slow_async")) as caller:
        call = begin(caller, make_group(["sleep 20"], group_id="slow"), make_group(["ab"], group_id="fast"))
        first = await call.read()
        assert [answer.index for answer in first.answers] == [1]
        call.cancel()


async def test_answers_that_are_ready_together_share_a_message() -> None:
    async with served(LENGTH) as caller:
        messages = await read(begin(caller, *(make_group(group_id=str(n)) for n in range(40))))
    assert len(messages) < 10


async def test_a_bad_group_costs_itself_and_fails_as_its_own_call_would() -> None:
    async with served(LENGTH, limits={"max_completions": 2, "max_group_bytes": 1000}) as caller:
        unknown, many = make_group(scorers=("shrot",)), make_group(["a"] * 3)
        long, old = make_group(["x" * 2000]), wire.encode_group(make_group())
        old.wire_version = 7
        answers = await ask(
            caller, make_group(), unknown, many, long, old.SerializeToString(), b"\xff", make_group(["ab"])
        )
        refusals = [await caller.refusal(group) for group in (unknown, many, long)]
        refusals += [await caller.raw(old.SerializeToString()), await caller.raw(b"\xff")]
    failures = [answers[index] for index in range(1, 6)]
    assert [(f.code, f.details) for f in failures if isinstance(f, Failure)] == refusals
    assert [code.name for code, _ in refusals] == [
        "INVALID_ARGUMENT",
        "OUT_OF_RANGE",
        "OUT_OF_RANGE",
        "FAILED_PRECONDITION",
        "INVALID_ARGUMENT",
    ]
    assert [first_values(answers[0]), first_values(answers[6])] == [[1.0, 1.0], [1.0]]


async def test_a_group_that_finds_the_server_full_is_told_when_to_return_and_the_others_are_scored() -> None:
    async with served(misbehaving("slow_async"), limits={"max_queued_completions": 2}) as caller:
        answers = await ask(caller, *(make_group(["sleep 0.2"], group_id=str(n)) for n in range(3)))
    assert [len(first_values(answers[index])) for index in (0, 1)] == [1, 1]
    pushed_back = answers[2]
    assert isinstance(pushed_back, Failure)
    assert pushed_back.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    [(key, pushback_ms)] = pushed_back.trailers
    assert key == "grpc-retry-pushback-ms"
    assert int(pushback_ms) >= 100


async def test_a_group_that_is_being_scored_for_another_call_is_scored_once(tmp_path: Path) -> None:
    tally = tmp_path / "tally"
    async with served(misbehaving("once_a_call")) as caller:
        group = make_group(run_id="r", columns={"tally": str(tally)})
        alone, together = await asyncio.gather(caller.score(group), ask(caller, group, group))
    assert together == {0: alone, 1: alone}
    assert tally.read_text() == "called\n"


async def test_groups_are_counted_as_the_calls_that_they_stand_for_and_the_stream_beside_them() -> None:
    async with served(LENGTH, metrics=PAGE) as caller:
        await ask(caller, make_group(), make_group(["abc"]), make_group(scorers=("none",)))
        seen = await page_where(caller, lambda seen: not seen("calls_in_flight"))
    assert seen("calls_finished_total", method="ScoreGroup", code="OK") == 2
    assert seen("calls_finished_total", method="ScoreGroup", code="INVALID_ARGUMENT") == 1
    assert seen("calls_finished_total", method="ScoreGroups", code="OK") == 1
    assert seen("scores_total", scorer="short", status="OK") == 3


@pytest.mark.parametrize("end", ["cancel", "deadline"])
async def test_a_stream_that_ends_early_ends_the_scoring_of_every_group(end: str) -> None:
    async with served(misbehaving("slow_async", concurrency=1), metrics=PAGE) as caller:
        groups = [make_group(["sleep 30"], group_id=str(n)) for n in range(5)]
        call = begin(caller, *groups, timeout_s=0.5 if end == "deadline" else 30)
        await page_where(caller, lambda seen: seen("scorer_groups", scorer="slow_async") == 5)
        if end == "cancel":
            call.cancel()
        assert await call.code() in (grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED)
        assert values(await caller.score(make_group(["a"], group_id="next"), timeout_s=5)) == [1.0], "its place is free"
        seen = await page_where(caller, lambda seen: not seen("calls_in_flight"))
    assert seen("calls_finished_total", method="ScoreGroup", code="CANCELLED") == 5
    assert seen("calls_finished_total", method="ScoreGroups", code="CANCELLED") == 1


async def test_a_server_that_stops_answers_what_it_can_and_ends_the_rest_as_unavailable() -> None:
    async with served(misbehaving("slow_async"), drain_grace_s=0.6, metrics=PAGE) as caller:
        call = begin(caller, make_group(["sleep 0.3"], group_id="in time"), make_group(["sleep 30"], group_id="late"))
        await page_where(caller, lambda seen: seen("scorer_groups", scorer="slow_async") == 2)
        draining = asyncio.create_task(caller.server.drain())
        messages = aiter(call)
        first = await anext(messages)
        assert [answer.index for answer in first.answers] == [0], "a call in flight goes on while the server drains"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await read(messages)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert await draining is False


async def test_a_request_without_groups_with_too_many_or_of_something_else_is_refused() -> None:
    async with served(LENGTH) as caller:
        for data, code, told in (
            (b"", grpc.StatusCode.INVALID_ARGUMENT, "at least one group"),
            (b"\xff", grpc.StatusCode.INVALID_ARGUMENT, "no ScoreGroupsRequest"),
            (calls_of([b""] * 257).SerializeToString(), grpc.StatusCode.OUT_OF_RANGE, "257 groups.*takes 256"),
        ):
            call = caller.channel.unary_stream("/reward_server.v1.RewardService/ScoreGroups")(data, timeout=10)
            with pytest.raises(grpc.aio.AioRpcError, match=told) as caught:
                await call.read()
            assert caught.value.code() is code


async def test_a_stream_needs_the_token_and_spends_the_quota_of_every_group(tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text("alice: secret\n")
    quotas = {"alice": {"calls_per_minute": 2}}
    async with served(LENGTH, tokens_file=str(tmp_path / "tokens"), quotas=quotas, metrics=PAGE) as caller:
        refused = begin(caller, make_group())
        with pytest.raises(grpc.aio.AioRpcError, match="asks for a token"):
            await refused.read()
        assert await refused.code() is grpc.StatusCode.UNAUTHENTICATED
        [message] = await read(begin(caller, *(make_group(group_id=str(n)) for n in range(3)), token="secret"))
        over = [outcome.code.name for _, outcome in message if isinstance(outcome, Failure)]
        assert over == ["RESOURCE_EXHAUSTED"]
        assert (await page(caller))("sheds_total", reason="quota") == 1


def test_long_answers_are_sent_in_messages_that_every_client_takes() -> None:
    answers = [wire_groups.scored(index, b"x" * 400_000) for index in range(7)]
    messages = list(wire_groups.encode_answers(answers))
    assert [len(message) // 400_000 for message in messages] == [2, 2, 2, 1]
    long = [wire_groups.scored(0, b"x" * 5_000_000)]
    assert len(list(wire_groups.encode_answers(long))) == 1, "one answer is not divided"
