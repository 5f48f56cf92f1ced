"""Which rows make the next batch: like lengths, within the budget, the oldest group first, fair between runs."""

from __future__ import annotations

import random
from collections.abc import Sequence

from reward_server.execution.batch_queue import BatchQueue, Row, WorkItem, choose_batch, first_rows


def work(lengths: Sequence[int], run: str = "run", caller: str = "") -> WorkItem:
    return WorkItem([None] * len(lengths), lengths, (run, caller), asked=0.0)


def emptied(queue: BatchQueue) -> list[list[Row]]:
    batches = []
    while queue.rows:
        batches.append(queue.next_batch())
    return batches


def lengths(batches: Sequence[Sequence[Row]]) -> list[list[int]]:
    return [[row.length for row in batch] for batch in batches]


async def test_rows_of_like_length_go_together_whosever_they_are() -> None:
    queue = BatchQueue(max_batch_tokens=400)
    for _ in range(2):
        queue.add(work([100, 10, 99, 11]))
    assert lengths(emptied(queue)) == [[100, 100, 99, 99], [11, 11, 10, 10]]
    assert (queue.rows, queue.tokens) == (0, 0)


async def test_a_batch_keeps_to_the_budget_with_padding_and_a_longer_row_goes_alone() -> None:
    rng = random.Random(0)
    queue = BatchQueue(max_batch_tokens=1000)
    for _ in range(200):
        queue.add(work([rng.randint(1, 1500) for _ in range(8)]))
    batches = emptied(queue)
    assert sum(map(len, batches)) == 1600
    for batch in lengths(batches):
        assert len(batch) == 1 or max(batch) * len(batch) <= 1000


async def test_padding_is_small_where_there_is_a_choice() -> None:
    rng = random.Random(0)
    queue = BatchQueue(max_batch_tokens=4096)
    for _ in range(64):
        queue.add(work([min(1000, max(4, round(rng.lognormvariate(4.6, 0.8)))) for _ in range(8)]))
    batches = lengths(emptied(queue))
    padded = sum(max(batch) * len(batch) for batch in batches)
    assert sum(map(sum, batches)) / padded > 0.93


def test_a_batch_grows_while_it_gets_more_done_for_its_cost() -> None:
    # Of 16,000 tokens a call by itself counts for 1,000.
    assert choose_batch([500] * 40, 0, 16_000) == slice(0, 32)  # full
    assert choose_batch([8000, 10, 10], 0, 16_000) == slice(0, 1)  # 20 tokens are not worth 16,000 of padding
    assert choose_batch([8000, 10, 10], 1, 16_000) == slice(1, 3)
    assert choose_batch([60, 50], 0, 16_000) == slice(0, 2)  # little padding, and a call less
    assert choose_batch([500] * 30 + [10], 30, 16_000) == slice(0, 31)  # too short for a call of its own
    assert choose_batch([20_000, 9_000], 0, 16_000) == slice(0, 1)


async def test_groups_are_finished_in_the_order_in_which_they_were_begun() -> None:
    rng = random.Random(0)
    works = [work([rng.randint(10, 200) for _ in range(8)], caller=str(n % 16)) for n in range(300)]
    queue = BatchQueue(max_batch_tokens=1000)
    for each in works:
        queue.add(each)
    left, finished, open_at_once = dict.fromkeys(works, 8), [], []
    for batch in emptied(queue):
        for row in batch:
            left[row.work] -= 1
        finished += [works.index(row.work) for row in batch if left[row.work] == 0]
        open_at_once.append(sum(0 < count < 8 for count in left.values()))
    # Of 300 groups about 8 batches' tokens are begun at once: 10 whole groups of 840, or twice as many half done.
    assert max(open_at_once) <= 24
    ranks = {group: rank for rank, group in enumerate(dict.fromkeys(finished))}
    assert max(abs(rank - group) for group, rank in ranks.items()) <= 30


async def test_a_run_of_one_group_is_not_behind_a_run_of_a_thousand() -> None:
    queue = BatchQueue(max_batch_tokens=1000)
    for n in range(1000):
        queue.add(work([100] * 8, run="big", caller=str(n % 64)))
    late = work([100] * 8, run="small")
    queue.next_batch()
    queue.add(late)
    for _ in range(12):  # 8 batches were begun when it came
        queue.next_batch()
    assert late not in queue.items()
    assert queue.rows > 7000


async def test_a_work_is_taken_out_of_wherever_it_is() -> None:
    queue = BatchQueue(max_batch_tokens=100)
    begun, waiting, again = work([50, 50, 50, 50]), work([20] * 2, run="late"), work([10] * 3)
    queue.add(begun)
    assert len(queue.next_batch()) == 2
    for _ in range(40):
        queue.add(work([100]))
    queue.add(waiting)
    queue.add_batches(again.rows[:1], again.rows[1:])
    assert queue.items() >= {begun, waiting, again}
    rows, tokens = queue.rows, queue.tokens
    assert [len(queue.discard(each)) for each in (begun, waiting, again, begun)] == [2, 2, 3, 0]
    assert (queue.rows, queue.tokens) == (rows - 7, tokens - 170)
    assert lengths(emptied(queue)) == [[100]] * 40


async def test_batches_that_are_put_back_come_first_and_as_they_are() -> None:
    queue = BatchQueue(max_batch_tokens=100)
    first = work([10, 20, 30])
    queue.add(work([90]))
    queue.add_batches(first.rows[:2], first.rows[2:])
    assert lengths(emptied(queue)) == [[10, 20], [30], [90]]


async def test_rows_without_padding_go_in_the_order_of_their_groups_and_fill_the_batch() -> None:
    queue = BatchQueue(max_batch_tokens=100, pads=False)
    for lengths_of_group in ([60, 5], [30, 4], [99, 1]):
        queue.add(work(lengths_of_group))
    assert queue.has_full_batch
    assert lengths(emptied(queue)) == [[60, 5, 30, 4], [99, 1]]
    assert not queue.has_full_batch


def test_a_batch_without_padding_ends_where_its_head_would_see_too_much_of_it() -> None:
    assert first_rows([60, 40, 1], 100) == 2
    assert first_rows([160, 40], 100) == 1
    assert first_rows([1] * 200, 100) == 100
    assert first_rows([80, *[1] * 50], 100) == 10  # 11 rows of 80 are more than 8 full batches


async def test_rows_that_are_put_back_come_first_again() -> None:
    for pads in (True, False):
        queue = BatchQueue(max_batch_tokens=100, pads=pads)
        first, second = work([50, 50, 50]), work([50])
        queue.add(first)
        queue.add(second)
        batch = queue.next_batch()
        queue.put_back(batch)
        assert (queue.rows, queue.tokens) == (4, 200)
        assert queue.next_batch() == batch
        queue.put_back(batch)
        assert len(queue.discard(first)) == 3
        assert [row.work for rows in emptied(queue) for row in rows] == [second]
