"""Samples of many callers share batches: each caller gets its own outputs, and a failure costs its own sample only."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence

import pytest

from reward_server.execution.batch_device import Job
from reward_server.execution.batcher import Batcher, BatcherClosedError
from tests.support.batching import Line, Model, batcher, submit
from tests.support.waiting import until


async def test_callers_share_batches_and_each_gets_its_own_outputs() -> None:
    model = Model()
    async with batcher(model) as made:
        model.gate.clear()
        first = submit(made, "busy")
        await until(lambda: bool(model.batches))
        others = [submit(made, "a" * n, "b" * (n + 1)) for n in range(1, 20)]
        await asyncio.sleep(0)
        assert made.queued == 38
        model.gate.set()
        assert (await first).outputs == [4]
        assert [(await other).outputs for other in others] == [[n, n + 1] for n in range(1, 20)]
        assert len(model.batches) < 8, "38 rows of 19 callers"
        assert (made.stats.rows, made.stats.batches, made.queued) == (39, len(model.batches), 0)
        assert 0.5 < made.stats.fill <= 1


async def test_a_free_device_starts_at_once_with_what_is_there() -> None:
    model = Model()
    async with batcher(model) as made:
        began = time.monotonic()
        assert (await submit(made, "a")).outputs == [1]
        assert time.monotonic() - began < 1
        assert (await made.submit([], [])).outputs == []


async def test_a_full_batch_is_started_behind_the_one_that_is_computed_and_a_smaller_one_grows_until_then() -> None:
    model = Model()
    async with batcher(model, max_batch_tokens=100) as made:
        model.gate.clear()
        tasks = [submit(made, "a" * 10)]
        await until(lambda: bool(model.batches))
        tasks += [submit(made, "b" * 10) for _ in range(9)]
        await asyncio.sleep(0)
        assert len(model.started) == 1, "9 rows of 10 tokens are no full batch"
        tasks += [submit(made, "c" * 10) for _ in range(11)]
        await asyncio.sleep(0)
        assert [len(batch) for batch in model.started] == [1, 10], "10 rows are one, and 10 more wait behind it"
        assert len(model.batches) == 1
        model.gate.set()
        await asyncio.gather(*tasks)
        assert [len(batch) for batch in model.batches] == [1, 10, 10]


@pytest.mark.parametrize("pads", [True, False])
async def test_callers_that_wait_fill_the_batches(pads: bool) -> None:
    model, rng, most = Model(), random.Random(0), 4096
    made = Batcher([model], most, 30, pads)
    made.start()

    async def caller(rounds: int) -> None:
        for _ in range(rounds):
            lengths = [min(1000, max(4, round(rng.lognormvariate(4.6, 1.0)))) for _ in range(8)]
            await made.submit(["a"] * 8, [200] * 8 if pads else lengths, ("run", ""))

    await asyncio.gather(*(caller(10) for _ in range(64)))
    await made.close()
    whole = model.batches[1:-1]  # the first one finds an empty queue
    if pads:
        assert sum(map(len, whole)) / len(whole) >= 0.95 * (most // 200)
    else:
        assert made.stats.tokens / made.stats.batches >= 0.9 * most
    assert made.stats.rows == 64 * 10 * 8


async def test_a_device_is_idle_while_work_waits_and_not_while_there_is_none() -> None:
    class Timed(Line):
        """Gives each batch the times that are next in the list."""

        def start(self, samples: Sequence[str]) -> Job:
            job = Job(samples)
            began, ended = times.pop(0)
            job.began = began
            job.end([1] * len(samples))
            job.ended = ended
            return job

    now = time.perf_counter()
    # Idle from its caller's arrival at 1 to 3, busy to 5; none waits until 6, idle to 6.5, busy to 9; the next one came
    # at 7: idle to 10, busy to 11.
    times = [(now + 3, now + 5), (now + 6.5, now + 9), (now + 10, now + 11)]
    made = Batcher([Timed(lambda _: asyncio.sleep(0, []))], 100, 30)
    made.start()
    await made.submit(["a"], [1], arrived=now + 1)
    await made.submit(["b"], [1], arrived=now + 6)
    await made.submit(["c"], [1], arrived=now + 7)
    assert (made.stats.idle_s, made.stats.busy_s) == pytest.approx((3.5, 5.5))
    assert made.stats.idle == pytest.approx(3.5 / 9)
    await made.close()


async def test_what_a_gone_caller_sent_never_reaches_the_model_and_is_counted() -> None:
    model = Model()
    async with batcher(model) as made:
        model.gate.clear()
        running = submit(made, "running")
        await until(lambda: bool(model.batches))
        gone = [submit(made, f"gone{n}", "gone too") for n in range(500)]
        stays = submit(made, "stays")
        await asyncio.sleep(0)
        for task in gone:
            task.cancel()
        await asyncio.gather(*gone, return_exceptions=True)
        assert (made.stats.dropped, made.queued) == (1000, 1)
        model.gate.set()
        assert ((await running).outputs, (await stays).outputs) == ([7], [5])
        assert model.seen == ["running", "stays"]


async def test_a_row_that_raises_costs_itself_alone() -> None:
    model = Model()
    async with batcher(model) as made:
        model.gate.clear()
        tasks = [submit(made, "running")]
        await until(lambda: bool(model.batches))
        tasks += [submit(made, "ok1", "bad"), *(submit(made, f"ok{n}", f"ok{n}") for n in range(2, 10))]
        await asyncio.sleep(0)
        model.gate.set()
        answers = [(await task).outputs for task in tasks]
        assert isinstance(answers[1][1], ValueError)
        assert answers[1][0] == 3
        assert answers[2:] == [[3, 3]] * 8
        # 18 rows: 18, 9+9, and 5+4, 2+3, 1+1 of the half that holds it
        assert made.stats.failed == 1
        assert made.stats.batches <= 1 + 10


async def test_an_output_too_few_is_an_error_and_not_somebody_elses_score() -> None:
    async def forgets(texts: Sequence[str]) -> list[int]:
        return [len(text) for text in texts][: max(1, len(texts) - 1)]

    made = Batcher([Line(forgets)], 1000, 30)
    made.start()
    answer = await made.submit(["a", "bb", "ccc"], [1, 2, 3])
    assert answer.outputs == [1, 2, 3], "alone each is right"
    await made.close()


async def test_devices_share_the_work_and_an_idle_one_takes_from_a_full_one() -> None:
    slow, fast = Model(), Model()
    async with batcher(slow, fast, max_batch_tokens=10) as made:
        slow.gate.clear()
        tasks = [submit(made, *["a" * 10] * 8) for _ in range(8)]
        await until(lambda: len(fast.batches) == 63)
        slow.gate.set()
        assert [(await task).outputs for task in tasks] == [[10] * 8] * 8
        assert len(slow.batches) == 1


async def test_a_herd_of_callers_is_served_evenly() -> None:
    model = Model()
    async with batcher(model, max_batch_tokens=100) as made:
        model.gate.clear()
        order: list[str] = []
        tasks = []
        for caller in ("greedy", *(f"rank {n}" for n in range(7))):
            for _ in range(100 if caller == "greedy" else 5):
                tasks.append(submit(made, "a" * 50, "b" * 50, run="run", caller=caller))
                tasks[-1].add_done_callback(lambda _, caller=caller: order.append(caller))
        await asyncio.sleep(0)
        model.gate.set()
        await asyncio.gather(*tasks)
    # 5 × 8 groups are the share of each; what is begun at once (16 groups) may have come before.
    assert order[:60].count("greedy") <= 25
    assert order.count("greedy") == 100


async def test_closing_says_so_to_those_who_wait() -> None:
    model = Model()
    made = Batcher([model], 1000, 30)
    made.start()
    model.gate.clear()
    tasks = [submit(made, "running"), submit(made, "waiting")]
    await until(lambda: bool(model.batches))
    await made.close()
    for task in tasks:
        with pytest.raises(BatcherClosedError):
            await task
    with pytest.raises(BatcherClosedError):
        await made.submit(["a"], [1])
