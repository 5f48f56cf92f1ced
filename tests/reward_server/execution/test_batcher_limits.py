"""Batches beyond their limit: they fail, their device is left until it ends, and nobody waits for it longer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import pytest

from reward_server.execution.batch_device import Job
from reward_server.execution.batcher import Batcher, BatcherClosedError, BatchTimeoutError
from tests.support.batching import Line, Model, batcher, submit
from tests.support.waiting import until

LIMIT_S = 0.3


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
