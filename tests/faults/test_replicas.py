"""Replicas that die, stop, drain and come back: no group is lost or has two answers, none ends after its deadline."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from reward_server.client import AsyncRewardClient, RewardClient
from reward_server.errors import DeadlineError
from tests.support.builders import make_group
from tests.support.proxy import Proxy
from tests.support.replicas import SLACK_S, Load, Replicas, lengths, values
from tests.support.servers import broken, slow_length

Before = Callable[[str], Proxy]


@pytest.mark.slow
def test_a_replica_killed_in_a_call_loses_nothing(replicas: Replicas) -> None:
    first, second = replicas(2, slow_length(0.3))
    with RewardClient([first.endpoint, second.endpoint]) as client:
        client.score(make_group(["a"]))
        load = Load(client, timeout_s=20).submit(12)
        time.sleep(0.2)
        first.kill()
        load.finish()
        assert not load.errors()
        assert not load.wrong(lengths)
        assert client.counts.retries > 0


@pytest.mark.slow
async def test_the_async_client_loses_nothing_either(replicas: Replicas) -> None:
    first, second = replicas(2, slow_length(0.3))
    async with AsyncRewardClient([first.endpoint, second.endpoint], timeout_s=20) as client:
        groups = [make_group(["a" * number], group_id=str(number)) for number in range(12)]
        await client.score(groups[0])
        pending = asyncio.gather(*[client.score(group) for group in groups])
        await asyncio.sleep(0.2)
        os.kill(first.pid, signal.SIGKILL)
        assert [values(scores) for scores in await pending] == [[float(number)] for number in range(12)]
        assert client.counts.retries > 0


@pytest.mark.slow
def test_a_stopped_replica_and_a_half_open_connection_are_left_within_15_s(replicas: Replicas, proxy: Before) -> None:
    stopped, silent, well = replicas(3, slow_length(0.3))
    link = proxy(silent.endpoint)
    with RewardClient([stopped.endpoint, link.endpoint, well.endpoint]) as client:
        load = Load(client, timeout_s=30).submit(3).finish()  # all three are connected
        load.submit(12)
        time.sleep(0.1)
        stopped.freeze()
        link.go_silent()  # no FIN, no RST: nobody is told
        load.finish()
        assert not load.errors()
        assert not load.wrong(lengths)
        assert load.longest_s < 15 + SLACK_S + 1.5  # a ping after 10 s, 5 s for its answer; then the group's turn
        assert client.counts.retries >= 2


@pytest.mark.slow
def test_with_a_hedge_a_stopped_replica_costs_the_hedges_wait_alone(replicas: Replicas) -> None:
    first, second = replicas(2, slow_length(0.05))
    with RewardClient([first.endpoint, second.endpoint], hedge_after_s=0.5) as client:
        client.score(make_group(["a"]))
        first.freeze()
        load = Load(client, timeout_s=20).submit(10).finish()
        assert not load.errors()
        assert not load.wrong(lengths)
        assert load.longest_s < 0.5 + SLACK_S  # half of them met the stopped one
        assert client.counts.hedges > 0
        assert client.counts.retries == 0


@pytest.mark.slow
async def test_the_async_client_hedges_too(replicas: Replicas) -> None:
    first, second = replicas(2, slow_length(0.05))
    async with AsyncRewardClient([first.endpoint, second.endpoint], timeout_s=20, hedge_after_s=0.5) as client:
        await client.score(make_group(["a"]))
        first.freeze()
        began = time.monotonic()
        groups = [make_group(["a" * number], group_id=str(number)) for number in range(6)]
        answers = await asyncio.gather(*map(client.score, groups))
        assert [values(scores) for scores in answers] == [[float(number)] for number in range(6)]
        assert time.monotonic() - began < 0.5 + SLACK_S
        assert client.counts.hedges > 0


@pytest.mark.slow
def test_the_p95_hedge_goes_by_the_latencies_so_far_and_the_loser_is_cancelled(
    replicas: Replicas, tmp_path: Path
) -> None:
    first, second = replicas(2, slow_length(0.02))
    with RewardClient([first.endpoint, second.endpoint], hedge_after_s="p95") as client:
        Load(client, timeout_s=10).submit(40).finish()
        assert client.counts.hedges <= 4  # of the twenty after the first twenty, some are beyond their p95
        first.freeze()
        before = client.counts.hedges
        load = Load(client, timeout_s=20).submit(2).finish()
        assert not load.errors()
        assert load.longest_s < 2 * SLACK_S
        assert client.counts.hedges > before
        first.thaw()
        assert not Load(client, timeout_s=20).submit(10).finish().errors()


@pytest.mark.slow
def test_all_replicas_down_for_5_s_and_back_lose_nothing(replicas: Replicas) -> None:
    both = replicas(2, slow_length(0.1))
    with RewardClient([replica.endpoint for replica in both]) as client:
        client.score(make_group(["a"]))
        load = Load(client, timeout_s=30).submit(8)
        for replica in both:
            replica.kill()
        down_at = time.monotonic()
        load.submit(4)
        time.sleep(max(0.0, down_at + 5 - time.monotonic()))
        assert len(load.ended_s) < 12
        for replica in both:
            replica.start()
        load.finish()
        assert not load.errors()
        assert not load.wrong(lengths)
        assert load.longest_s < 5 + 2 * SLACK_S + 3  # two servers start, one after the other


def test_all_replicas_down_for_good_end_at_the_deadline_with_the_cause(replicas: Replicas) -> None:
    (replica,) = replicas(1, slow_length(0.5))
    with RewardClient(replica.endpoint) as client:
        client.connect(10)
        load = Load(client, timeout_s=1.5).submit(4)
        time.sleep(0.2)
        replica.kill()
        load.finish()
        errors = load.errors()
        assert len(errors) == 4
        assert all(isinstance(error, DeadlineError) for error in errors.values())
        assert "attempts failed, the last" in str(errors["group 0"])


@pytest.mark.slow
def test_a_replica_that_comes_back_is_used_again(replicas: Replicas, tmp_path: Path) -> None:
    first, second = replicas(2, broken("length"))
    with RewardClient([first.endpoint, second.endpoint]) as client:
        assert not Load(client, timeout_s=10).submit(8).finish().errors()
        first.kill()
        assert not Load(client, timeout_s=10).submit(8).finish().errors()
        first.start()
        second.kill()  # so that only the one that came back can answer
        assert not Load(client, timeout_s=10).submit(8).finish().errors()


@pytest.mark.slow
def test_sigterm_during_load_drains_and_loses_nothing(replicas: Replicas, tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    first, second = replicas(2, slow_length(0.2, seen=str(seen)))
    with RewardClient([first.endpoint, second.endpoint]) as client:
        client.score(make_group(["a"]))
        load = Load(client, timeout_s=20).submit(20)
        time.sleep(0.3)
        os.kill(first.pid, signal.SIGTERM)
        load.submit(10).finish()
        assert not load.errors()
        assert not load.wrong(lengths)
        assert first.server.stop() == 0  # it says itself that no call was cut
    assert len(seen.read_text().split()) == 31  # each group once, the first one included: nothing was begun in vain


@pytest.mark.slow
def test_a_sole_server_that_restarts_under_load_again_and_again_loses_nothing(replicas: Replicas) -> None:
    (replica,) = replicas(1, slow_length(0.05))
    with RewardClient(replica.endpoint) as client:
        client.score(make_group(["a"]))
        load = Load(client, timeout_s=30)
        for _ in range(2):
            load.submit(8)
            time.sleep(0.1)
            replica.kill()
            replica.start()
        load.finish()
        assert not load.errors()
        assert not load.wrong(lengths)


def test_the_same_group_sent_twice_while_in_flight_is_scored_once(replicas: Replicas, tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    (replica,) = replicas(1, slow_length(0.5, seen=str(seen)))
    with RewardClient(replica.endpoint, timeout_s=10) as one, RewardClient(replica.endpoint, timeout_s=10) as other:
        twice = [client.submit(make_group(["abc"], group_id="twice")) for client in (one, other)]
        assert [values(future.result()) for future in twice] == [[3.0], [3.0]]
    assert seen.read_text().split() == ["3"]


def test_a_call_cancelled_while_it_waits_for_its_next_attempt_leaves_no_timer(replicas: Replicas) -> None:
    (replica,) = replicas(1, slow_length(0.5))
    with RewardClient(replica.endpoint, timeout_s=30) as client:
        client.connect(10)
        load = Load(client, timeout_s=30).submit(3)
        time.sleep(0.1)
        replica.kill()
        assert all(future.cancel() for future in load.futures.values())
        assert len(load.counted) == 3
    deadline = time.monotonic() + 5
    while [thread for thread in threading.enumerate() if thread.name == "reward client timers"]:
        assert time.monotonic() < deadline
        time.sleep(0.02)
