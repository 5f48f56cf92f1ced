"""The functions of `remote_rewards` under other trainers: pickled, synchronous, in threads, with groups of any size."""

from __future__ import annotations

import asyncio
import datetime
import inspect
import math
import multiprocessing
import os
import pickle
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reward_server.client import remote_rewards
from reward_server.errors import ConfigError, InvalidGroupError
from reward_server.launch import ServerProcess, launch_server
from tests.support.processes import run_forking
from tests.support.rollouts import scored_by_trl
from tests.support.servers import SCORING, function

SCORERS = [
    {"type": "group_function", "name": "rank_in_group", "function": f"{SCORING}:rank_in_group", "weight": 0.5},
    function("unlucky"),
    function("year"),
]
# The second completion fails, under a scorer that is asked for each completion.
HALF_FAILED = {"prompts": ["p"] * 3, "completions": ["aa", "unlucky", "b"]}


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("seen") / "groups"


@pytest.fixture(scope="module")
def server(seen: Path) -> Iterator[ServerProcess]:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("SEEN_GROUPS", str(seen))
        started = launch_server({"scorers": SCORERS, "workers": 1}, timeout_s=60)
    yield started
    started.stop()


@pytest.fixture
def rewards(server: ServerProcess) -> Callable[..., list[Any]]:
    def make(**options: Any) -> list[Any]:
        return remote_rewards(server.endpoint, **{"group_per_call": True, "sync": True, **options})

    return make


# ------------------------------------------------------------------------------------------------ groups and failures


def test_all_rows_of_a_call_are_one_group_of_any_size(rewards: Callable[..., list[Any]]) -> None:
    rank, *_ = rewards()
    assert rank(prompts=["p", "q", "p"], completions=["aaa", "b", "cc"]) == [2.0, 0.0, 1.0]
    assert rank(prompts=["p"], completions=["a"]) == [0.0]


def test_a_size_and_any_size_exclude_each_other(rewards: Callable[..., list[Any]]) -> None:
    with pytest.raises(ConfigError, match=r"any size, and num_generations \(2\)"):
        rewards(num_generations=2)


def test_a_failed_completion_has_no_reward_at_all_and_its_siblings_keep_theirs(
    rewards: Callable[..., list[Any]], caplog: pytest.LogCaptureFixture
) -> None:
    rank, unlucky, _ = rewards(on_failure="none")
    assert rank(**HALF_FAILED) == [1.0, None, 0.0]
    assert unlucky(**HALF_FAILED) == [1.0, None, 1.0]
    assert "'unlucky' failed on 1 of 3" in caplog.text


def test_another_failure_policy_is_refused_by_name(rewards: Callable[..., list[Any]]) -> None:
    with pytest.raises(ConfigError, match="one of raise, none, not 'zero'"):
        rewards(on_failure="zero")


def test_a_group_without_an_answer_has_no_reward_or_raises(
    rewards: Callable[..., list[Any]], server: ServerProcess
) -> None:
    rows = {"prompts": ["p", "p"], "completions": ["a", "b"]}
    (keeps, *_), (raises, *_) = rewards(on_failure="none", timeout_s=0.2), rewards(timeout_s=0.2)
    os.kill(server.pid, signal.SIGSTOP)
    try:
        assert keeps(**rows) == [None, None]
        with pytest.raises(TimeoutError):
            raises(**rows)
    finally:
        os.kill(server.pid, signal.SIGCONT)


def test_a_fault_of_the_callers_raises_in_any_case(rewards: Callable[..., list[Any]]) -> None:
    rank, *_ = rewards(on_failure="none")
    with pytest.raises(InvalidGroupError, match="blob"):
        rank(prompts=["p"], completions=["a"], blob=[b"\x00"])


def test_weighted_scores_are_multiplied_and_weigh_one(rewards: Callable[..., list[Any]]) -> None:
    rank, *_ = rewards(weighted=True)
    assert rank(prompts=["p", "p", "p"], completions=["aaa", "b", "cc"]) == [1.0, 0.0, 0.5]
    assert rank.weight == 1.0


@pytest.mark.parametrize(
    "when", [datetime.date(2026, 1, 1), datetime.datetime(2026, 1, 1, 12), np.datetime64("2026-01-01")]
)
def test_columns_travel_as_plain_values(rewards: Callable[..., list[Any]], when: Any) -> None:
    *_, year = rewards()
    assert year(prompts=["p"], completions=["a"], when=[when], count=[np.float32(0.1)]) == [2026.0]


# ------------------------------------------------------------------------------------------- processes, threads, loops


def test_the_async_form_is_known_as_async_and_the_other_is_not(rewards: Callable[..., list[Any]]) -> None:
    assert all(inspect.iscoroutinefunction(reward) for reward in rewards(sync=False))
    assert not any(inspect.iscoroutinefunction(reward) for reward in rewards())
    assert [reward.__name__ for reward in rewards(sync=False)] == ["rank_in_group", "unlucky", "year"]


async def test_the_synchronous_form_works_inside_a_running_event_loop(rewards: Callable[..., list[Any]]) -> None:
    rank, *_ = rewards()
    assert rank(prompts=["p", "p"], completions=["aa", "b"]) == [1.0, 0.0]


def test_functions_that_are_called_at_once_in_threads_share_one_call(
    rewards: Callable[..., list[Any]], seen: Path
) -> None:
    functions = rewards()
    rows = {"prompts": ["threads"] * 2, "completions": ["aa", "b"]}
    with ThreadPoolExecutor(len(functions)) as threads:
        found = [answer.result() for answer in [threads.submit(function, **rows) for function in functions]]
    assert found == [[1.0, 0.0], [1.0, 1.0], [None, None]]
    assert seen.read_text().count('"threads"') == 1


def test_a_function_that_asks_again_for_the_same_list_has_it_scored_again(
    rewards: Callable[..., list[Any]], seen: Path
) -> None:
    rank, *_ = rewards()
    rows = {"prompts": ["again"] * 2, "completions": ["aa", "b"]}
    assert rank(**rows) == rank(**rows) == [1.0, 0.0]
    assert seen.read_text().count('"again"') == 2


FORKING = """
import os, sys
from reward_server.client import remote_rewards

rank, unlucky, _ = remote_rewards(sys.argv[1], group_per_call=True, sync=True, timeout_s=20)
rows = {"prompts": ["p", "p"], "completions": ["aa", "b"]}
assert rank(**rows) == [1.0, 0.0]
if not (child := os.fork()):
    os._exit(10 if unlucky(**rows) == [1.0, 1.0] else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 10
assert unlucky(**rows) == [1.0, 1.0]
"""


def test_a_function_that_was_used_before_a_fork_works_on_both_sides(server: ServerProcess) -> None:
    run_forking(FORKING, server.endpoint)


def test_a_pickled_function_connects_where_it_is_used(rewards: Callable[..., list[Any]]) -> None:
    before = rewards(sync=False)
    rows = {"prompts": ["p", "p"], "completions": ["aa", "b"]}
    assert asyncio.run(before[0](**rows)) == [1.0, 0.0]
    after = pickle.loads(pickle.dumps(before))
    assert after[0]._calls is after[1]._calls
    assert asyncio.run(after[0](**rows)) == [1.0, 0.0]


@pytest.mark.slow
def test_trls_asynchronous_worker_scores_a_group_that_is_not_full_in_a_spawned_process(
    rewards: Callable[..., list[Any]],
) -> None:
    functions = rewards(sync=False, on_failure="none", weighted=True)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as spawned:
        found = spawned.submit(scored_by_trl, functions, ["p", "p", "p"], ["aaaa", "unlucky", "b"], 4).result(120)
    # The ranks by length are 1, 2 and 0, weighed by 0.5; `unlucky` gives 1. The survivors' rewards are 1.5 and 1.
    assert found["rewards/rank_in_group"] == pytest.approx([0.5, math.nan, 0.0], nan_ok=True)
    assert found["rewards/unlucky"] == pytest.approx([1.0, math.nan, 1.0], nan_ok=True)
    assert found["reward"] == pytest.approx([1.5, math.nan, 1.0], nan_ok=True)
    assert found["advantage"] == pytest.approx([1.0, 0.0, -1.0], abs=1e-6)
