"""What becomes of a call: through a real server on a port, by raw stubs and by the client."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path

import grpc
import grpc.aio
import pytest

from reward_server import wire
from reward_server.client import AsyncRewardClient
from reward_server.errors import GroupTooLargeError
from reward_server.serving import server
from reward_server.serving.scorer_set import ScorerSet
from reward_server.types import Completion, Group, Status
from reward_server.v1 import reward_pb2 as pb
from tests.support.builders import make_group
from tests.support.served import LENGTH, messages, misbehaving, of_class, served, statuses, values


async def test_a_group_comes_back_with_a_score_a_completion_and_scorer() -> None:
    async with served(LENGTH, misbehaving(weight=2.0)) as caller:
        scores = await caller.score(make_group(["ab", "abcd"], group_id="g7"))
    assert scores.group_id == "g7"
    assert [scorer.name for scorer in scores.scorers] == ["short", "obeys"]
    assert [values(scores, 0), values(scores, 1)] == [[1.0, 0.0], [2.0, 4.0]]
    assert scores.scorers[1].weight == 2.0
    assert scores.rewards() == [5.0, 8.0]  # 1·1 + 2·2 and 1·0 + 2·4
    assert scores.compute_s > 0


async def test_only_the_scorers_that_are_asked_for_run() -> None:
    async with served(LENGTH, misbehaving()) as caller:
        scores = await caller.score(make_group(["raise"], scorers=("short",)))
    assert [scorer.name for scorer in scores.scorers] == ["short"]


async def test_info_tells_scorers_limits_and_the_digest_of_every_answer() -> None:
    async with served(LENGTH, misbehaving("once_a_call"), limits={"max_completions": 9}) as caller:
        info = wire.decode_info(await caller.stub.GetServerInfo(pb.GetServerInfoRequest(wire_version=1)))
        scores = await caller.score(make_group(scorers=("short",)))
    assert [scorer.kind for scorer in info.scorers] == ["length", "function"]
    assert info.scorers[1].required_columns == ("tally",)
    assert info.limits.max_completions == 9
    assert scores.config_digest == info.config_digest


# ----------------------------------------------------------------------------------------------------------- admission


async def test_an_unknown_scorer_is_refused_with_the_nearest_one() -> None:
    async with served(LENGTH) as caller:
        code, details = await caller.refusal(make_group(scorers=("shrot",)))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "there is no scorer 'shrot' on this server, did you mean 'short'?" in details


async def test_a_missing_column_names_column_scorer_and_what_is_there() -> None:
    async with served(misbehaving("once_a_call")) as caller:
        code, details = await caller.refusal(make_group(columns={"answer": 1, "source": "x"}))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "scorer 'once_a_call' needs the column 'tally', and the group has ['answer', 'source']" in details


async def test_a_column_that_only_some_completions_have_is_missing() -> None:
    group = Group("p", (Completion("a", columns={"tally": "x"}), Completion("b")), group_id="g")
    async with served(misbehaving("once_a_call")) as caller:
        code, _ = await caller.refusal(group)
    assert code is grpc.StatusCode.INVALID_ARGUMENT


async def test_too_many_completions_are_out_of_range_with_both_numbers_and_the_option() -> None:
    async with served(LENGTH, limits={"max_completions": 2}) as caller:
        code, details = await caller.refusal(make_group(["a", "b", "c"]))
    assert code is grpc.StatusCode.OUT_OF_RANGE
    assert "has 3 completions and this server takes 2: raise limits.max_completions" in details


async def test_too_many_bytes_are_out_of_range_and_never_resource_exhausted() -> None:
    async with served(LENGTH, limits={"max_group_bytes": 1000}) as caller:
        code, details = await caller.refusal(make_group(["x" * 8_000_000]))
        assert code is grpc.StatusCode.OUT_OF_RANGE
        assert "takes 1000: raise limits.max_group_bytes" in details
        assert values(await caller.score(make_group(["a"]))) == [1.0]


async def test_a_group_beyond_grpcs_own_limit_is_scored() -> None:
    async with served(misbehaving()) as caller:  # 4 MB is gRPC's default limit
        assert values(await caller.score(make_group(["x" * 6_000_000]))) == [6_000_000.0]


async def test_another_wire_version_names_both_versions() -> None:
    async with served(LENGTH) as caller:
        request = wire.encode_group(make_group())
        request.wire_version = 7
        code, details = await caller.raw(request.SerializeToString())
        assert code is grpc.StatusCode.FAILED_PRECONDITION
        assert "this server speaks wire version 1, the caller 7" in details
        code, _ = await caller.raw(pb.GetServerInfoRequest(wire_version=7).SerializeToString(), "GetServerInfo")
        assert code is grpc.StatusCode.FAILED_PRECONDITION


@pytest.mark.parametrize("data", [b"\xff\xff\xff", pb.ScoreGroupRequest(wire_version=1).SerializeToString()])
async def test_what_is_no_group_is_invalid_argument(data: bytes) -> None:
    async with served(LENGTH) as caller:
        code, details = await caller.raw(data)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert details


# ------------------------------------------------------------------------------------------------------------ failures


@pytest.mark.parametrize(
    ("command", "status", "message"),
    [
        ("raise", "FAILED", "TypeError: first line second line"),
        ("die", "FAILED", "the worker process died while scoring (exit code 3)"),
        ("hang", "TIMEOUT", "no score within timeout_s = 0.5 s; its worker was killed and replaced"),
    ],
)
async def test_one_bad_completion_costs_its_own_score_only(command: str, status: str, message: str) -> None:
    async with served(misbehaving(timeout_s=0.5), LENGTH) as caller:
        scores = await caller.score(make_group(["ab", command, "abcd"]))
    assert statuses(scores) == ["OK", status, "OK"]
    assert values(scores) == [2.0, None, 4.0]
    assert messages(scores)[1] == message
    assert statuses(scores, 1) == ["OK", "OK", "OK"], "the other scorer's scores stand"


async def test_a_group_aware_scorer_fails_whole() -> None:
    async with served(misbehaving(group_aware=True)) as caller:
        scores = await caller.score(make_group(["ab", "raise"]))
    assert statuses(scores) == ["FAILED", "FAILED"]


async def test_an_async_function_is_isolated_and_limited_too() -> None:
    async with served(misbehaving("slow_async", timeout_s=0.3)) as caller:
        scores = await caller.score(make_group(["ab", "raise", "sleep 5"]))
    assert statuses(scores) == ["OK", "FAILED", "TIMEOUT"]
    assert messages(scores)[1:] == ["TypeError: first line second line", "no score within timeout_s = 0.3 s"]


async def test_a_scorer_in_threads_is_isolated_and_limited_too() -> None:
    async with served(of_class("Threaded", timeout_s=0.3)) as caller:
        scores = await caller.score(make_group(["ab", "raise"]))
        assert statuses(scores) == ["OK", "FAILED"]
        scores = await caller.score(make_group(["sleep 0.8"]))
        assert statuses(scores) == ["TIMEOUT"]
        assert "its thread runs on" in messages(scores)[0]


async def test_threads_that_all_outlast_their_limit_do_not_hold_others_for_ever() -> None:
    async with served(of_class("Threaded", timeout_s=0.2)) as caller:
        overdue = [caller.score(make_group(["sleep 1.5"], group_id=str(index))) for index in range(2)]
        await asyncio.gather(*overdue)
        stuck = await caller.score(make_group(["ab"]))
        assert statuses(stuck) == ["TIMEOUT"]
        assert "all 2 threads of this scorer are busy" in messages(stuck)[0]
        await asyncio.sleep(1.3)
        assert values(await caller.score(make_group(["ab"]))) == [2.0]


async def test_scorers_of_one_group_run_side_by_side() -> None:
    first, second = misbehaving("slow_async"), {**misbehaving("slow_async"), "name": "again"}
    async with served(first, second) as caller:
        scores = await caller.score(make_group(["sleep 0.4"]))
    assert scores.compute_s < 0.75


@pytest.mark.parametrize(
    ("prompt", "found", "message"),
    [
        ("too few", ["INVALID", "INVALID"], "returned 1 scores for 2 completions"),
        ("no result", ["FAILED", "FAILED"], "TypeError: Scorer.score returned [1.0, 2.0] of type list, not a Result"),
        ("nan", ["INVALID", "OK"], "returned nan, not a finite number"),
        ("numbers", ["INVALID", "OK"], "returned 3.0 of type float, not a Score"),
    ],
)
async def test_a_third_partys_answer_is_checked(prompt: str, found: list[str], message: str) -> None:
    async with served(of_class("Sloppy")) as caller:
        scores = await caller.score(make_group(prompt=prompt))
    assert statuses(scores) == found
    assert messages(scores)[0] == message


async def test_what_cannot_be_sent_is_made_text_or_dropped_and_the_scores_stand() -> None:
    async with served(of_class("Sloppy")) as caller:
        scores = await caller.score(make_group(prompt="extra"))
    [scorer] = scores.scorers
    assert statuses(scores) == ["OK", "OK"]
    assert scorer.metrics == {"m": 1.0}
    assert list(scorer.extra) == ["object"]
    assert str(scorer.extra["object"][0]).startswith("<object object")


async def test_the_log_has_the_traceback_and_the_group_and_the_answer_has_not(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING, "reward_server"):
        async with served(misbehaving()) as caller:
            scores = await caller.score(make_group(["raise"], group_id="g42"))
    assert "Traceback" not in messages(scores)[0]
    assert "scorer 'obeys', group 'g42': FAILED: TypeError" in caplog.text
    assert "Traceback" in caplog.text


# -------------------------------------------------------------------------------------------------- twice, never, late


async def test_a_group_that_arrives_twice_while_it_is_scored_is_scored_once(tmp_path: Path) -> None:
    tally = tmp_path / "tally"
    async with served(misbehaving("once_a_call")) as caller:
        group = make_group(run_id="r", columns={"tally": str(tally)})
        first, second = await asyncio.gather(caller.score(group), caller.score(group))
    assert first == second
    assert tally.read_text() == "called\n"


async def test_groups_of_one_name_and_different_content_are_both_scored(tmp_path: Path) -> None:
    tally = tmp_path / "tally"
    async with served(misbehaving("once_a_call")) as caller:
        await asyncio.gather(
            *(caller.score(make_group([text], run_id="r", columns={"tally": str(tally)})) for text in "ab")
        )
    assert tally.read_text() == "called\ncalled\n"


async def test_a_call_that_waits_for_its_twin_scores_for_itself_when_the_twin_is_cancelled(tmp_path: Path) -> None:
    async with served(misbehaving("once_a_call")) as caller:
        group = make_group(run_id="r", columns={"tally": str(tmp_path / "tally")})
        first = asyncio.create_task(caller.score(group))
        await asyncio.sleep(0.2)
        second = asyncio.create_task(caller.score(group))
        await asyncio.sleep(0.1)
        first.cancel()
        assert statuses(await second) == ["OK", "OK"]


async def test_a_deadline_ends_the_scoring_on_the_server() -> None:
    async with served(misbehaving("slow_async", concurrency=1)) as caller:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await caller.score(make_group(["sleep 30"]), timeout_s=0.3)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        scores = await caller.score(make_group(["a"], group_id="next"), timeout_s=5)
    assert values(scores) == [1.0], "the only place was freed"


async def test_concurrency_bounds_how_many_groups_a_scorer_has_at_once() -> None:
    async with served(misbehaving("slow_async", concurrency=1)) as caller:
        scores = await asyncio.gather(*(caller.score(make_group(["sleep 0.3"], group_id=str(i))) for i in range(3)))
    assert max(answer.queued_s for answer in scores) > 0.5
    assert max(answer.compute_s for answer in scores) < 0.6


async def test_columns_reach_the_function_as_they_were(tmp_path: Path) -> None:
    source = "def f(completions, deep, big, **_):\n"
    source += "    return [float(deep[0] == [[1, None], {'é': 2}] and big[0] == 2**70)]\n"
    (tmp_path / "f.py").write_text(source)
    async with served({"type": "function", "name": "f", "function": f"{tmp_path}/f.py:f"}) as caller:
        columns = {"deep": [[1, None], {"é": 2}], "big": 2**70}
        assert values(await caller.score(make_group(["a"], columns=columns))) == [1.0]
        assert json.loads(wire.encode_group(make_group(columns=columns)).columns_json) == columns


async def test_a_message_beyond_what_the_transport_reads_is_too_large_and_not_sent_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server, "_LEAST_MESSAGE_BYTES", 4_000)
    async with served(LENGTH, limits={"max_group_bytes": 1_000}) as caller:
        async with AsyncRewardClient(caller.server.endpoints[0]) as client:
            for size in (2_000, 20_000):  # refused by the service, and by the transport before it
                with pytest.raises(GroupTooLargeError, match=r"limits\.max_group_bytes"):
                    await client.score(make_group(["x" * size]), timeout_s=20)
            assert client.counts.retries == 0


async def test_a_lone_surrogate_in_an_exception_does_not_break_the_answer(tmp_path: Path) -> None:
    (tmp_path / "f.py").write_text("def f(completions, **_):\n    raise ValueError(completions[0])\n")
    async with served({"type": "function", "name": "f", "function": f"{tmp_path}/f.py:f"}) as caller:
        scores = await caller.score(make_group(["\ud83d"]))
    assert statuses(scores) == ["FAILED"]
    assert scores.scorers[0].scores[0].status is Status.FAILED


async def test_what_is_the_servers_own_fault_tells_the_caller_nothing_and_the_log_everything(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with served(LENGTH) as caller:
        monkeypatch.delattr(ScorerSet, "score")  # a defect of ours
        code, details = await caller.refusal(make_group(["secret"]))
    assert code is grpc.StatusCode.INTERNAL
    assert details == "internal error; the server's log has its traceback"
    assert "AttributeError" in caplog.text
