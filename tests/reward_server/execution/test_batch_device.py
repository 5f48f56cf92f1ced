"""A device's threads: while one batch is computed, the next one is assembled and the last one's outputs are read."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence

import pytest

from reward_server.execution.batch_device import ThreadedDevice
from reward_server.execution.batcher import Batcher
from tests.support.waiting import until

DEADLINE_S = 20.0


class Model:
    """Texts to their lengths in three steps, each written down. Computing waits until `go` is set."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.go = threading.Event()
        self.read_may_end = threading.Event()
        self.read_may_end.set()
        self.threads: dict[str, str] = {}
        self.device = ThreadedDevice("model", self.assemble, self.compute, self.read)

    def assemble(self, texts: Sequence[str]) -> Sequence[str]:
        if "unreadable" in texts:
            raise ValueError("unreadable")
        self._did("assembled", texts)
        return texts

    def compute(self, texts: Sequence[str]) -> Sequence[str]:
        self._did("computing", texts)
        assert self.go.wait(DEADLINE_S)
        self._did("computed", texts)
        return texts

    def read(self, texts: Sequence[str]) -> list[int]:
        assert self.read_may_end.wait(DEADLINE_S)
        self._did("read", texts)
        return [len(text) for text in texts]

    def _did(self, what: str, texts: Sequence[str]) -> None:
        self.threads[what] = threading.current_thread().name
        self.events.append(f"{what} {texts[0]}")


@pytest.fixture
def model() -> Iterator[Model]:
    made = Model()
    yield made
    made.go.set()
    made.read_may_end.set()
    made.device.close()


async def test_the_next_batch_is_ready_before_the_one_before_it_ends(model: Model) -> None:
    batcher = Batcher([model.device], max_batch_tokens=4, limit_s=DEADLINE_S)
    batcher.start()
    first = asyncio.create_task(batcher.submit(["aaaa"], [4]))
    await until(lambda: "computing aaaa" in model.events)
    second = asyncio.create_task(batcher.submit(["bbbb"], [4]))
    await until(lambda: "assembled bbbb" in model.events)
    assert model.events == ["assembled aaaa", "computing aaaa", "assembled bbbb"]
    model.go.set()
    assert ((await first).outputs, (await second).outputs) == ([4], [4])
    assert model.events.index("computing bbbb") > model.events.index("computed aaaa")
    assert set(model.threads.values()) == {"assemble model", "model", "read model"}
    await batcher.close()


async def test_outputs_are_read_while_the_next_batch_is_computed(model: Model) -> None:
    model.go.set()
    model.read_may_end.clear()
    jobs = [model.device.start([text]) for text in ("a", "bb", "ccc")]
    await until(lambda: "computed ccc" in model.events)
    assert not any(event.startswith("read") for event in model.events)
    model.read_may_end.set()
    assert [await job.done for job in jobs] == [[1], [2], [3]]
    assert all(job.began is not None and job.ended is not None and job.began <= job.ended for job in jobs)


async def test_a_batch_that_is_taken_back_is_never_computed_and_one_that_has_begun_is_not_taken_back(
    model: Model,
) -> None:
    running, waiting = model.device.start(["running"]), model.device.start(["waiting"])
    await until(lambda: "computing running" in model.events and "assembled waiting" in model.events)
    assert not running.take_back()
    assert waiting.take_back()
    after = model.device.start(["after"])
    model.go.set()
    assert (await running.done, await after.done) == ([7], [5])
    assert "computing waiting" not in model.events
    assert not running.take_back()


async def test_a_step_that_raises_ends_its_batch_alone(model: Model) -> None:
    model.go.set()
    broken, whole = model.device.start(["unreadable"]), model.device.start(["whole"])
    with pytest.raises(ValueError, match="unreadable"):
        await broken.done
    assert await whole.done == [5]
    assert broken.began is None
