"""The cache of whole servers: off unless asked for, shared by replicas, and harmless on a full disk."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import pytest

from reward_server.client import RewardClient
from reward_server.config import config_from_mapping
from reward_server.errors import ConfigError
from reward_server.serving.scorer_set import ScorerSet
from reward_server.types import Group
from tests.support.builders import make_group
from tests.support.servers import function

SUPPORT = Path(__file__).parents[2] / "support"


def scored_by(scorers: ScorerSet, *groups: Group) -> Any:
    async def run() -> list[Any]:
        await scorers.load()
        try:
            return [await scorers.score(group) for group in groups]
        finally:
            await scorers.close()

    return asyncio.run(run())


@pytest.mark.parametrize("cache", [None, False])
def test_it_is_off_unless_it_is_asked_for(cache: Any) -> None:
    mapping = {"scorers": [{"type": "length", "name": "s", "max": 9}]}
    assert ScorerSet(config_from_mapping(mapping | ({} if cache is None else {"cache": cache}))).cache is None


@pytest.mark.parametrize("cache", [True, {}, {"max_bytes": 1 << 20}])
def test_asked_for_it_answers_for_scorers_that_are_deterministic_only(cache: Any) -> None:
    noisy = function("vowels")
    sure = function("target_share", deterministic=True)
    scorers = ScorerSet(config_from_mapping({"scorers": [noisy, sure], "workers": 1, "cache": cache}))
    group = make_group(["a", "bb"], columns={"target": "ab"})
    first, again = scored_by(scorers, group, group)
    assert first.rewards() == again.rewards()
    assert scorers.cache is not None
    assert {name: counts.hits for name, counts in scorers.cache.counts.items()} == {"target_share": 2}


def test_a_wrong_setting_is_named() -> None:
    with pytest.raises(ConfigError, match=r"cache\.max_bytes: .* 0 is not"):
        config_from_mapping({"scorers": [{"type": "length", "name": "s", "max": 9}], "cache": {"max_bytes": 0}})


# It writes a line for each call, into the file that the column `tally` names, and takes half a second.
TALLIED = {
    "type": "function",
    "name": "tallied",
    "function": f"{SUPPORT / 'misbehaving.py'}:once_a_call",
    "deterministic": True,
}


def calls(tally: Path) -> int:
    return tally.read_text().count("called") if tally.exists() else 0


@pytest.mark.slow
def test_two_replicas_share_a_store_and_a_herd_is_scored_once(serve: Any, tmp_path: Path) -> None:
    tally = tmp_path / "tally"
    cache = {"path": str(tmp_path / "cache.sqlite")}
    one, other = (serve(TALLIED, cache=cache) for _ in range(2))
    with RewardClient(one.endpoint) as client, RewardClient(other.endpoint) as second:
        herd = [
            client.submit(make_group(["a", "b"], group_id=str(i), columns={"tally": str(tally)}), timeout_s=30)
            for i in range(64)
        ]
        assert all(future.result(30).rewards() == [1.0, 1.0] for future in herd)
        assert calls(tally) == 1
        assert second.score(make_group(["b"], columns={"tally": str(tally)}), timeout_s=30).rewards() == [1.0]
        assert calls(tally) == 1
    os.kill(one.pid, signal.SIGKILL)
    with RewardClient(serve(TALLIED, cache=cache).endpoint) as third:
        third.score(make_group(["a"], columns={"tally": str(tally)}), timeout_s=30)
    assert calls(tally) == 1


@pytest.mark.slow
def test_what_a_function_logs_comes_again_from_disk_as_it_was(serve: Any, tmp_path: Path) -> None:
    cache = {"path": str(tmp_path / "cache.sqlite")}
    answers = []
    for _ in range(2):
        with RewardClient(serve(function("logged", deterministic=True), cache=cache).endpoint) as client:
            answers.append(client.score(make_group(["a", "bbbb"]), timeout_s=30).scorers)
    assert answers[0] == answers[1]
    assert (answers[1][0].metrics, answers[1][0].extra) == ({"lengths/mean": 2.5}, {"length": [1, 4]})


@pytest.mark.slow
def test_what_one_caller_cancels_another_still_gets(serve: Any, tmp_path: Path) -> None:
    tally = tmp_path / "tally"
    server = serve(TALLIED, cache=True)
    groups = [make_group(["a"], group_id=str(i), columns={"tally": str(tally)}) for i in range(2)]
    with RewardClient(server.endpoint) as one, RewardClient(server.endpoint) as other:
        first = one.submit(groups[0], timeout_s=30)
        second = other.submit(groups[1], timeout_s=30)
        while not calls(tally):
            wait([second], timeout=0.01)
        first.cancel()
        assert second.result(30).rewards() == [1.0]
    assert calls(tally) == 1


FULL = """
import asyncio, resource, sys
from reward_server.config import config_from_mapping
from reward_server.serving.scorer_set import ScorerSet
from reward_server.types import Completion, Group

def group(number):
    return Group("p", tuple(Completion(f"{number}/{index}" * 50) for index in range(200)))

async def main():
    scorers = ScorerSet(config_from_mapping(
        {"scorers": [{"type": "length", "name": "short", "max": 9}], "cache": {"path": sys.argv[1]}}
    ))
    await scorers.load()
    limit = int(sys.argv[2])
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    for number in range(30):
        scores = await scorers.score(group(number))
        assert [score.value for score in scores.scorers[0].scores] == [0.0] * 200, scores
        await asyncio.sleep(0.005)
    await scorers.score(group(29))
    store = scorers.cache.store
    await scorers.close()
    print(scorers.cache.counts["short"].hits, store.lost > 0, store.written > 0)

asyncio.run(main())
"""


@pytest.mark.slow
def test_on_a_full_disk_everything_is_scored_and_it_is_said_once(tmp_path: Path) -> None:
    path = tmp_path / "cache.sqlite"
    run = subprocess.run(
        [sys.executable, "-c", FULL, path, str(400_000)], capture_output=True, text=True, timeout=60, check=False
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["200", "True", "True"]
    assert run.stderr.count("cannot be written") == 1, run.stderr
