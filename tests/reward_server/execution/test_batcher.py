"""Samples of many callers share batches: each caller gets its own outputs, and a failure costs its own sample only."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from reward_server.execution.batch_device import Job
from reward_server.execution.batcher import Batcher, BatcherClosedError, BatchTimeoutError
from tests.support.waiting import until

LIMIT_S = 0.3


Compute = Callable[[Sequence[str]], Awaitable[list[int]]]


class Line:
    """A device in the event loop: it computes batches with this function, one after another."""

    def __init__(self, compute: Compute):
        self._compute = compute
        self._turn = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self.started: list[list[str]] = []

    def start(self, samples: Sequence[str]) -> Job:
        job = Job(samples)
        self.started.append(list(samples))
        self._tasks.add(asyncio.create_task(self._run(job)))
        return job

    async def _run(self, job: Job) -> None:
        async with self._turn:
            if job.begin():
                try:
                    job.end(await self._compute(job.samples))
                except Exception as error:
                    job.end(error=error)


class Model(Line):
    """Texts to their lengths, a batch at a time; keeps what it saw, and waits while it is held."""

    def __init__(self) -> None:
        super().__init__(self.compute)
        self.batches: list[list[str]] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def compute(self, texts: Sequence[str]) -> list[int]:
        self.batches.append(list(texts))
        await self.gate.wait()
        if "bad" in texts:
            raise ValueError("this one is bad")
        return [len(text) for text in texts]

    @property
    def seen(self) -> list[str]:
        return [text for batch in self.batches for text in batch]


@asynccontextmanager
async def batcher(*models: Model, max_batch_tokens: int = 1000, limit_s: float = 30.0) -> AsyncIterator[Batcher]:
    made = Batcher(models, max_batch_tokens, limit_s)
    made.start()
    try:
        yield made
    finally:
        await made.close()


def submit(to: Batcher, *texts: str, run: str = "", caller: str = "") -> asyncio.Task[Any]:
    return asyncio.create_task(to.submit(texts, [len(text) for text in texts], (run, caller)))


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


async def test_the_limit_counts_computing_and_not_waiting() -> None:
    async def slow(texts: Sequence[str]) -> list[int]:
        await asyncio.sleep(LIMIT_S / 2)
        return [len(text) for text in texts]

    made = Batcher([Line(slow)], max_batch_tokens=1, limit_s=LIMIT_S)
    made.start()
    answers = [await task for task in [submit(made, "aaa") for _ in range(6)]]
    assert [answer.outputs for answer in answers] == [[3]] * 6
    assert answers[-1].queued_s > 2 * LIMIT_S
    assert all(answer.compute_s < LIMIT_S for answer in answers)
    await made.close()


async def test_a_batch_beyond_the_limit_fails_and_its_device_is_left_until_it_ends() -> None:
    stuck, free = Model(), Model()
    async with batcher(stuck, free, limit_s=LIMIT_S) as made:
        stuck.gate.clear()
        hung = submit(made, "hangs")
        await until(lambda: bool(stuck.batches or free.batches))
        assert not free.batches
        queued = [submit(made, f"q{n}") for n in range(10)]
        assert [(await task).outputs for task in queued] == [[2]] * 10, "the other device takes them"
        assert isinstance((await hung).outputs[0], BatchTimeoutError)
        assert made.is_overdue
        assert (await submit(made, "later")).outputs == [5]
        assert stuck.seen == ["hangs"]
        stuck.gate.set()
        await until(lambda: not made.is_overdue)
        assert made.stats.overdue == 1


async def test_a_batch_that_a_device_began_behind_one_that_hangs_fails_with_it_and_one_that_it_did_not_waits() -> None:
    class Gpu(Model):
        """It begins each batch at once, as a GPU whose launches run ahead."""

        async def _run(self, job: Job) -> None:
            job.begin()
            job.end(await self.compute(job.samples))

    gpu = Gpu()
    async with batcher(gpu, max_batch_tokens=10, limit_s=LIMIT_S) as made:
        gpu.gate.clear()
        tasks = [submit(made, "a" * 10), submit(made, "b" * 10)]
        errors = [(await task).outputs[0] for task in tasks]
        assert all(isinstance(error, BatchTimeoutError) for error in errors)
        assert str(errors[1]) == "the device is busy with a batch that exceeded its limit"
        gpu.gate.set()
        await until(lambda: not made.is_overdue)
        assert (await submit(made, "later")).outputs == [5]
    model = Model()
    async with batcher(model, max_batch_tokens=10, limit_s=LIMIT_S) as made:
        model.gate.clear()
        tasks = [submit(made, "a" * 10), submit(made, "b" * 10)]
        assert isinstance((await tasks[0]).outputs[0], BatchTimeoutError)
        model.gate.set()
        assert (await tasks[1]).outputs == [10]


async def test_with_all_devices_stuck_what_waits_is_given_up_after_one_limit() -> None:
    model = Model()
    async with batcher(model, limit_s=LIMIT_S) as made:
        model.gate.clear()
        hung = submit(made, "hangs")
        await until(lambda: bool(model.batches))
        waits = submit(made, "waits", "too")
        assert isinstance((await hung).outputs[0], BatchTimeoutError)
        late = submit(made, "late")
        began = time.monotonic()
        for task in (waits, late):
            error = (await task).outputs[0]
            assert isinstance(error, BatchTimeoutError)
            assert "all 1 devices are busy" in str(error)
        assert LIMIT_S / 2 < time.monotonic() - began < LIMIT_S + 2
        assert made.queued == 0
        model.gate.set()
        await until(lambda: not made.is_overdue)
        assert (await submit(made, "after")).outputs == [5]
        assert model.seen == ["hangs", "after"]


async def test_a_storm_of_cancelled_calls_before_a_stuck_device_leaves_nothing() -> None:
    model = Model()
    async with batcher(model, limit_s=LIMIT_S) as made:
        model.gate.clear()
        assert isinstance((await submit(made, "hangs")).outputs[0], BatchTimeoutError)
        for _ in range(4):
            tasks = [submit(made, "a", "b", run=str(n)) for n in range(500)]
            await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        assert (made.stats.dropped, made.queued, made.queued_tokens) == (4_000, 0, 0)
        assert not made._clocks
        model.gate.set()


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


async def test_closing_does_not_wait_for_a_device_that_is_stuck() -> None:
    model = Model()
    made = Batcher([model], 1000, LIMIT_S)
    made.start()
    model.gate.clear()
    hung = submit(made, "hangs")
    await until(lambda: bool(model.batches))
    waits = submit(made, "waits")
    assert isinstance((await hung).outputs[0], BatchTimeoutError)
    async with asyncio.timeout(5):
        await made.close()
    with pytest.raises(BatcherClosedError):
        await waits


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
