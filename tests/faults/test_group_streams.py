"""Groups that share calls, while replicas die and connections break: only what has no answer is sent again."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import pytest

from reward_server.client import RewardClient
from tests.support.builders import make_group
from tests.support.proxy import Proxy
from tests.support.replicas import Load, Replica, Replicas, lengths
from tests.support.servers import slow_length
from tests.support.waiting import until

pytestmark = pytest.mark.slow


async def both_connected(client: RewardClient) -> None:
    """Returns when groups that are sent one after another reach two replicas."""
    number = 0

    def reached() -> bool:
        nonlocal number
        number += 2
        pair = [client.score(make_group(["a"], group_id=f"first {number + n}")) for n in range(2)]
        return len({answer.config_digest for answer in pair}) == 2

    await until(reached, 20)


def two(replicas: Replicas, seconds: float) -> tuple[Replica, Replica]:
    """Two replicas that their digests tell apart."""
    return replicas(1, slow_length(seconds))[0], replicas(1, {**slow_length(seconds), "weight": 2.0})[0]


async def test_of_a_replica_that_is_killed_only_the_unanswered_groups_are_sent_again(replicas: Replicas) -> None:
    first, second = two(replicas, 0.1)
    with RewardClient([first.endpoint, second.endpoint]) as client:
        await both_connected(client)
        load = Load(client, timeout_s=30).submit_all(40)  # 20 at each, two at a time: a second
        await until(lambda: len(load.counted) >= 16)
        first.kill()
        load.finish()
        assert not load.errors()
        assert not load.wrong(lengths)
        assert 1 <= client.counts.retries <= 16, "those that had their answers stay answered"


async def test_a_replica_that_drains_scores_what_it_has_and_one_that_stops_at_once_hands_it_on(
    replicas: Replicas,
) -> None:
    first, second = two(replicas, 0.1)
    with RewardClient([first.endpoint, second.endpoint]) as client:
        await both_connected(client)
        load = Load(client, timeout_s=30).submit_all(40)
        await until(lambda: len(load.counted) >= 8)
        os.kill(first.pid, signal.SIGTERM)
        await until(lambda: len(load.counted) >= 16)
        os.kill(first.pid, signal.SIGTERM)  # twice: at once
        load.finish()
        assert not load.errors()
        assert not load.wrong(lengths)


def test_a_connection_that_is_cut_among_the_answers_costs_no_group(
    replicas: Replicas, proxy: Callable[[str], Proxy]
) -> None:
    [replica] = replicas(1, slow_length(0.02))
    link = proxy(replica.endpoint)
    with RewardClient(link.endpoint) as client:
        client.score(make_group(["a"]))
        link.cut_after(1500)
        load = Load(client, timeout_s=20).submit_all(30).finish()
        assert link.cuts == 1
        assert not load.errors()
        assert not load.wrong(lengths)
        assert 1 <= client.counts.retries < 30


def test_a_replica_that_stops_answering_is_left_and_its_groups_are_scored_elsewhere(replicas: Replicas) -> None:
    first, second = replicas(2, slow_length(0.05))
    with RewardClient([first.endpoint, second.endpoint]) as client:
        Load(client, timeout_s=20).submit(4).finish()
        first.freeze()
        load = Load(client, timeout_s=30).submit_all(20).finish()
        assert not load.errors()
        assert not load.wrong(lengths)
        assert load.longest_s < 20, "a ping after 10 s, 5 s for its answer"


def test_full_replicas_push_groups_back_until_all_are_scored(replicas: Replicas) -> None:
    [replica] = replicas(1, slow_length(0.01), limits={"max_queued_completions": 8})
    with RewardClient(replica.endpoint) as client:
        began = time.monotonic()
        load = Load(client, timeout_s=30).submit_all(40).finish()
        assert not load.errors()
        assert not load.wrong(lengths)
        assert client.counts.retries > 0
        assert time.monotonic() - began < 20
