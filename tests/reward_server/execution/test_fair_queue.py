"""Whose turn is next where less is free than asked for."""

from __future__ import annotations

import asyncio
import random

from reward_server.execution.fair_queue import FairQueue, FairSemaphore, current_caller


def order(*waiting: str) -> str:
    """Items `run rank number` as they are served."""
    queue: FairQueue[str] = FairQueue()
    for item in waiting:
        queue.put(item, (item[0], item[1]))
    return " ".join(queue.get() for _ in waiting)


def test_a_rank_is_served_first_come_first_served() -> None:
    assert order("a01", "a02", "a03") == "a01 a02 a03"


def test_ranks_of_a_run_take_turns() -> None:
    assert order("a01", "a02", "a03", "a11", "a12") == "a01 a11 a02 a12 a03"


def test_runs_take_turns_whatever_the_number_of_their_ranks() -> None:
    # Run a has three ranks and run b one: b's second group waits for one of a's, not for three.
    assert order("a01", "a11", "a21", "b01", "b02") == "a01 b01 a11 b02 a21"


def test_who_comes_late_waits_for_one_turn_and_not_for_the_queue() -> None:
    queue: FairQueue[int] = FairQueue()
    for index in range(1000):
        queue.put(index, ("greedy", ""))
    queue.get()
    queue.put(-1, ("modest", ""))
    assert [queue.get(), queue.get()].count(-1) == 1


def test_what_leaves_early_is_never_served_and_leaves_nothing_behind() -> None:
    generator = random.Random(0)
    queue: FairQueue[int] = FairQueue()
    for index in range(500):
        queue.put(index, (str(index % 7), str(index % 3)))
    gone = set(generator.sample(range(500), 300))
    for item in gone:
        queue.discard(item)
        queue.discard(item)
    assert set(queue) == set(range(500)) - gone
    assert {queue.get() for _ in range(len(queue))} == set(range(500)) - gone
    assert len(queue) == 0
    assert not queue._runs


async def test_turns_go_round_the_callers_and_a_cancelled_one_takes_none() -> None:
    semaphore, served = FairSemaphore(1), []

    async def use(name: str) -> None:
        current_caller.set((name[0], ""))
        async with semaphore:
            served.append(name)
            await asyncio.sleep(0)

    await semaphore.acquire()
    tasks = [asyncio.create_task(use(name)) for name in ("a1", "a2", "a3", "b1", "b2")]
    await asyncio.sleep(0)
    tasks[1].cancel()
    await asyncio.sleep(0)
    semaphore.release()
    await asyncio.wait(tasks)
    assert served == ["a1", "b1", "a3", "b2"]
    await asyncio.wait_for(semaphore.acquire(), 1)  # and the turn is free again


async def test_a_turn_that_is_given_to_a_caller_who_is_cancelled_at_once_is_given_on() -> None:
    semaphore = FairSemaphore(1)
    await semaphore.acquire()
    first, second = asyncio.create_task(semaphore.acquire()), asyncio.create_task(semaphore.acquire())
    await asyncio.sleep(0)
    semaphore.release()
    first.cancel()
    await asyncio.wait_for(second, 1)
    assert first.cancelled() or (await asyncio.gather(first, return_exceptions=True))
