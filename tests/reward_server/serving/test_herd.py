"""Many ranks at once: all of their groups are scored, and none waits for another's hundred."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from reward_server.client import AsyncRewardClient
from reward_server.types import GroupScores
from tests.support import gated
from tests.support.builders import make_group
from tests.support.served import PAGE, Caller, page_where, served

GATED = {"type": "tests.support.gated:Gated", "name": "gated", "timeout_s": 120}


@pytest.fixture(autouse=True)
def closed_gate() -> None:
    gated.opened = asyncio.Event()
    gated.served.clear()


@asynccontextmanager
async def ranks(caller: Caller, count: int) -> AsyncIterator[list[AsyncRewardClient]]:
    clients = [AsyncRewardClient(caller.server.endpoints[0], timeout_s=120) for _ in range(count)]
    yield clients
    for client in clients:
        await client.close()


def send(client: AsyncRewardClient, run: str, rank: int, groups: int) -> list[asyncio.Task[GroupScores]]:
    """All of a rank's groups at once. A group's id begins with its rank."""
    names = [{"run_id": run, "group_id": f"{rank}/{index}"} for index in range(groups)]
    return [asyncio.create_task(client.score(make_group(["a", "b"], **name))) for name in names]


def ranks_of(order: list[tuple[str, str]]) -> Counter[str]:
    return Counter(group.partition("/")[0] for _, group in order)


@pytest.mark.slow
async def test_a_herd_of_64_ranks_with_100_groups_each_is_scored_whole_and_in_turn() -> None:
    async with served(GATED, metrics=PAGE) as caller, ranks(caller, 64) as clients:
        # One rank after the other: first come first served, the last would wait for 6,300 groups.
        tasks = [task for rank, client in enumerate(clients) for task in send(client, "herd", rank, 100)]
        await page_where(caller, lambda seen: seen("queued_groups") == 6400, timeout_s=90)
        gated.opened.set()
        answers = await asyncio.gather(*tasks)
        seen = await page_where(caller, lambda seen: not seen("calls_in_flight"))
        assert [client._retries.counts.retries for client in clients] == [0] * 64
    assert len(answers) == 6400
    assert all(score.value == 1.0 for answer in answers for score in answer.scorers[0].scores)
    for turns in (1, 10, 50):  # the first group was taken up before there was a queue
        counts = ranks_of(gated.served[1 : 1 + 64 * turns])
        assert set(counts.values()) == {turns}, f"after {turns} turns"
    assert seen("calls_created_total", method="ScoreGroup") == 6400
    assert seen("calls_finished_total", method="ScoreGroup", code="OK") == 6400


async def test_a_run_of_one_rank_takes_turns_with_a_run_of_many() -> None:
    async with served(GATED, metrics=PAGE) as caller, ranks(caller, 9) as clients:
        tasks = [task for rank in range(8) for task in send(clients[rank], "large", rank, 20)]
        await page_where(caller, lambda seen: seen("queued_groups") == 160)
        tasks += send(clients[8], "small", 8, 10)
        await page_where(caller, lambda seen: seen("queued_groups") == 170)
        gated.opened.set()
        await asyncio.gather(*tasks)
    assert Counter(run for run, _ in gated.served[1:21]) == {"large": 10, "small": 10}


async def test_a_full_server_pushes_the_greedy_back_and_lets_another_in() -> None:
    limits = {"max_queued_completions": 80}
    async with served(GATED, metrics=PAGE, limits=limits) as caller, ranks(caller, 2) as (greedy, modest):
        tasks = send(greedy, "greedy", 0, 200)
        # 2 completions a group, of 80, at most 8 times what is free: 8 × (80 − 70) = 80, and 72 > 8 × (80 − 72) = 64.
        busy = await page_where(caller, lambda seen: seen("sheds_total", reason="share") > 100)
        assert busy("queued_completions") == 72
        tasks += send(modest, "modest", 1, 3)
        busy = await page_where(caller, lambda seen: seen("queued_completions") == 78)
        assert modest._retries.counts.retries == 0
        gated.opened.set()
        answers = await asyncio.gather(*tasks)
        seen = await page_where(caller, lambda seen: not seen("calls_in_flight"))
    assert len(answers) == 203
    assert seen.total("calls_created_total") == seen.total("calls_finished_total") > 303
