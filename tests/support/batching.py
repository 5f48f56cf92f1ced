"""A batcher for tests, and devices in the event loop that compute what they are told, or hang."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from reward_server.execution.batch_device import Job
from reward_server.execution.batcher import Batcher

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
