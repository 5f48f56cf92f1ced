"""Scorers that misbehave: the bad completion costs its own score, says why, and is never a number."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reward_server.client import RewardClient
from reward_server.types import Status
from tests.support.builders import make_group
from tests.support.replicas import SLACK_S, outcome, statuses, values
from tests.support.servers import broken, made

OK, INVALID, TIMEOUT, FAILED = Status.OK, Status.INVALID, Status.TIMEOUT, Status.FAILED

Server = Callable[..., Any]


BAD_COMPLETIONS = {
    "raises": (FAILED, "ValueError: this one is bad"),
    "sys_exits": (FAILED, "SystemExit: 7"),
    "exits": (FAILED, "worker process died while scoring (exit code 7)"),
    "dies": (FAILED, "worker process died while scoring (SIGKILL, out of memory?)"),
    "segfaults": (FAILED, "worker process died while scoring (SIGSEGV)"),
    "nan": (INVALID, "nan, not a finite number"),
    "infinity": (INVALID, "inf, not a finite number"),
    "minus_infinity": (INVALID, "-inf, not a finite number"),
    "string": (INVALID, "the string '0.5', not a number"),
    "nested": (INVALID, "type list, not a number"),
}
BAD_SHAPES = {
    "too_few": "2 scores for 3 completions",
    "too_many": "4 scores for 3 completions",
    "all_strings": "the string '0'",
}


def ask(client: RewardClient, scorer: str, *completions: str) -> Any:
    return client.submit(make_group(completions, group_id=f"{scorer}: {completions}", scorers=(scorer,)))


@pytest.mark.slow
def test_a_bad_completion_costs_its_own_score_and_says_why(server: Server) -> None:
    with RewardClient(server(*map(broken, BAD_COMPLETIONS)).endpoint, timeout_s=30) as client:
        bad = {name: ask(client, name, "a", "bad", "ccc") for name in BAD_COMPLETIONS}
        for name, (status, message) in BAD_COMPLETIONS.items():
            scores = bad[name].result()
            assert statuses(scores) == [OK, status, OK], name
            assert values(scores) == [1.0, None, 3.0], name
            assert message in outcome(scores)[1].message
            assert values(ask(client, name, "a", "bbbb").result()) == [1.0, 4.0], name


def test_an_answer_of_the_wrong_shape_is_invalid_for_all(server: Server) -> None:
    with RewardClient(server(*map(broken, BAD_SHAPES)).endpoint, timeout_s=20) as client:
        for name, message in BAD_SHAPES.items():
            scores = ask(client, name, "a", "bb", "ccc").result()
            assert statuses(scores) == [INVALID] * 3
            assert all(message in score.message for score in outcome(scores))


@pytest.mark.slow
def test_what_hangs_is_killed_at_its_limit_and_its_siblings_are_scored(server: Server) -> None:
    with RewardClient(server(broken("hangs", timeout_s=0.5)).endpoint, timeout_s=20) as client:
        began = time.monotonic()
        scores = client.score(make_group(["a", "bad", "ccc"]))
        # The group's try and the one of the completion alone, and a worker to be started anew for each.
        assert time.monotonic() - began < 2 * 0.5 + 2 * SLACK_S
        assert statuses(scores) == [OK, TIMEOUT, OK]
        assert "within timeout_s = 0.5 s" in outcome(scores)[1].message


@pytest.mark.slow
def test_the_time_limit_does_not_count_the_queue(server: Server) -> None:
    scorer = {**made("slow_length", seconds=0.4), "timeout_s": 1.0}
    with RewardClient(server(scorer, workers=1).endpoint, timeout_s=30) as client:
        pending = [client.submit(make_group(["a" * n], group_id=str(n))) for n in range(1, 6)]
        assert [values(future.result()) for future in pending] == [[float(n)] for n in range(1, 6)]  # 2 s of queue


@pytest.mark.slow
def test_what_eats_memory_to_its_limit_fails_and_its_siblings_are_scored(server: Server) -> None:
    endpoint = server(broken("eats_memory"), worker_memory_bytes=512 << 20).endpoint
    with RewardClient(endpoint, timeout_s=20) as client:
        scores = client.score(make_group(["a", "bad", "ccc"]))
        assert statuses(scores) == [OK, FAILED, OK]
        assert outcome(scores)[1].message == "MemoryError"
        assert values(client.score(make_group(["a"], group_id="next"))) == [1.0]


@pytest.mark.slow
def test_a_poison_completion_ends_failed_after_two_tries_and_its_siblings_are_scored(
    server: Server, tmp_path: Path
) -> None:
    tries = tmp_path / "tries"
    with RewardClient(server(made("poison", tries=str(tries))).endpoint, timeout_s=30) as client:
        scores = client.score(make_group(["a", "bad", "ccc", "dddd"]))
        assert statuses(scores) == [OK, FAILED, OK, OK]
        assert values(scores) == [1.0, None, 3.0, 4.0]
    assert tries.read_text().split() == ["4", "1"]  # once in its group, once alone


@pytest.mark.slow
def test_one_failing_scorer_leaves_the_others_scores_standing(server: Server) -> None:
    scorers = [broken("length"), broken("raises"), broken("exits"), broken("nan")]
    with RewardClient(server(*scorers).endpoint, timeout_s=20) as client:
        scores = client.score(make_group(["bad", "good"]))
        by_name = {scorer.name: [score.status for score in scorer.scores] for scorer in scores.scorers}
        assert by_name == {
            "length": [OK, OK],
            "raises": [FAILED, OK],
            "exits": [FAILED, OK],
            "nan": [INVALID, OK],
        }


@pytest.mark.slow
def test_bad_groups_cost_themselves_and_not_those_beside_them(server: Server) -> None:
    with RewardClient(server(broken("exits")).endpoint, timeout_s=30) as client:
        texts = [["a", "bad" if n % 4 == 0 else "ok"] for n in range(16)]
        pending = [client.submit(make_group(text, group_id=str(n))) for n, text in enumerate(texts)]
        found = [statuses(future.result()) for future in pending]
    assert found == [[OK, FAILED if n % 4 == 0 else OK] for n in range(16)]


def test_a_wall_clock_that_jumps_on_the_server_changes_nothing(server: Server) -> None:
    # `time.time` is stepped inside the server's own process, an hour forth and back at each group. The clock of the
    # system, which grpc's C core and the kernel read, stays as it is.
    jumping = {**made("jumping_clock", jump_s=3600.0), "place": "loop"}
    with RewardClient(server(jumping, made("slow_length", seconds=0.05)).endpoint, timeout_s=10) as client:
        for number in range(1, 9):
            scores = client.score(make_group(["a" * number], group_id=str(number)))
            assert [scorer.scores[0].value for scorer in scores.scorers] == [number, number]
            assert 0.0 <= scores.queued_s < SLACK_S
            assert 0.05 <= scores.compute_s < SLACK_S


def test_a_scorer_that_blocks_the_event_loop_does_not_keep_a_caller_beyond_its_deadline(server: Server) -> None:
    blocking = {**made("deaf_loop", seconds=1.5), "place": "loop"}
    with RewardClient(server(blocking).endpoint) as client:
        client.connect(10)
        began = time.monotonic()
        pending = [client.submit(make_group(["a"], group_id=str(n)), timeout_s=0.5) for n in range(2)]
        assert all(isinstance(future.exception(), TimeoutError) for future in pending)
        assert time.monotonic() - began < 0.5 + SLACK_S
    assert not [thread for thread in threading.enumerate() if thread.name == "reward client timers"]
