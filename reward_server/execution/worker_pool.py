"""A pool of worker processes for synchronous scorers: a worker that hangs is killed, and one that ends is replaced.

Owns the pool and the queue of callers that wait for a worker. A single process and its connection are
`processes.child`'s. Knows nothing of gRPC, and knows only the names of scorers.

    pool = WorkerPool(options, size=4)
    await pool.start()                          raises the load errors of user code
    timed = await pool.run(name, group, timeout_s=60)
    await pool.close()

Each worker loads every scorer and scores one group at a time. The first worker is loaded before `start` returns; the
others are loaded while the server already serves.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine, Sequence
from typing import Any

from reward_server.errors import ConfigError, ScorerLoadError
from reward_server.execution.fair_queue import FairQueue, current_caller
from reward_server.execution.results import NoResultError, ScorerDescription, TimedResult, timeout_failure
from reward_server.execution.worker_process import decode_answer, decode_description
from reward_server.processes.child import ChildEndedError, ChildProcess
from reward_server.processes.lifetime import how_it_ended
from reward_server.scorers.base import ScorerOptions
from reward_server.types import Group, Status

log = logging.getLogger("reward_server")

# Time for a cancelled caller's group to finish: waiting that long is cheaper than starting a new worker.
_CANCELLED_GRACE_S = 1.0
_MAX_BACKOFF_S = 30.0


class WorkerPool:
    """`size` workers, and the callers that wait for one of them in fair order."""

    def __init__(self, scorers: Sequence[ScorerOptions], size: int, memory_bytes: int | None = None):
        """Each worker may hold `memory_bytes` of data; None means no limit."""
        self._scorers = list(scorers)
        self._size = size
        self._memory_bytes = memory_bytes
        self._workers: set[_Worker] = set()
        self._idle: list[_Worker] = []
        self._waiting: FairQueue[asyncio.Future[_Worker]] = FairQueue()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False
        self.descriptions: dict[str, ScorerDescription] = {}
        """The scorers' descriptions, by name, once the pool has started."""

    @property
    def pids(self) -> list[int]:
        """The process ids of the workers that have loaded the scorers."""
        return [worker.pid for worker in self._workers]

    async def start(self) -> None:
        """Loads the scorers in a first worker and starts the others in the background.

        Raises ScorerLoadError, with the user's traceback, or ConfigError.
        """
        self.descriptions = await self._add_worker()
        for _ in range(self._size - 1):
            self._own(self._add_with_retries())

    async def run(self, name: str, group: Group, timeout_s: float) -> TimedResult:
        """Scores a group. The limit, in seconds, counts from when a worker starts with it.

        Raises NoResultError if the scorer raises or exceeds the limit, or if its process dies.
        """
        asked = time.perf_counter()
        worker = await self._acquire()
        began = time.perf_counter()
        asking = asyncio.create_task(worker.ask((name, group)))
        asking.add_done_callback(_retrieve_exception)
        try:
            await asyncio.wait({asking}, timeout=timeout_s)
        except asyncio.CancelledError:
            self._own(self._finish_abandoned(worker, asking))
            raise
        if not asking.done():
            asking.cancel()
            self._replace(worker)
            raise timeout_failure(timeout_s, "; its worker was killed and replaced", cost_worker=True)
        if isinstance(asking.exception(), ChildEndedError):
            raise await self._died(worker)
        self._release(worker)
        return TimedResult(decode_answer(asking.result()), began - asked, time.perf_counter() - began)

    async def close(self) -> None:
        """Ends every worker, including those that are still running something."""
        self._closing = True
        for waiting in self._waiting:
            waiting.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, *(worker.close() for worker in self._workers), return_exceptions=True)
        self._workers.clear()

    # ------------------------------------------------------------------------------------------------------ the queue

    async def _acquire(self) -> _Worker:
        while self._idle:
            worker = self._idle.pop()
            if worker.is_alive:
                return worker
        slot: asyncio.Future[_Worker] = asyncio.get_running_loop().create_future()
        self._waiting.put(slot, current_caller.get())
        try:
            return await slot
        except asyncio.CancelledError:
            if slot.done() and not slot.cancelled() and slot.exception() is None:
                self._release(slot.result())  # given and cancelled in one iteration of the loop
            raise
        finally:
            self._waiting.discard(slot)

    def _release(self, worker: _Worker) -> None:
        while self._waiting:
            slot = self._waiting.get()
            if not slot.done():
                slot.set_result(worker)
                return
        self._idle.append(worker)

    async def _finish_abandoned(self, worker: _Worker, asking: asyncio.Task[Any]) -> None:
        await asyncio.wait({asking}, timeout=_CANCELLED_GRACE_S)
        if asking.done() and asking.exception() is None:
            self._release(worker)
        else:
            asking.cancel()
            self._replace(worker)

    # ---------------------------------------------------------------------------------- starting and replacing workers

    async def _add_worker(self) -> dict[str, ScorerDescription]:
        worker = await _Worker.start("reward_server.execution.worker_process", self._memory_bytes or 0)
        try:
            descriptions = await worker.load(self._scorers)
            self._check_same_code(descriptions)
        except BaseException:
            await worker.close(grace_s=0)
            raise
        self._workers.add(worker)
        self._own(self._replace_when_it_ends(worker))
        self._release(worker)
        return descriptions

    def _check_same_code(self, descriptions: dict[str, ScorerDescription]) -> None:
        """Raises ScorerLoadError if a later worker has loaded other code than the first: only one version may serve."""
        for name, description in self.descriptions.items():
            if descriptions[name] != description:
                raise ScorerLoadError(
                    f"scorer {name!r}: its code has changed since the server loaded it (version "
                    f"{description.version}, now {descriptions[name].version}); reload the server by "
                    "SIGHUP, or restore the old code"
                )

    async def _add_with_retries(self) -> None:
        backoff_s = 1.0
        while not self._closing:
            try:
                await self._add_worker()
                return
            except (OSError, ScorerLoadError, ConfigError) as error:
                log.error("a worker process cannot be started, next attempt in %g s: %s", backoff_s, error)
                self._fail_waiting(error)
            await asyncio.sleep(backoff_s)
            backoff_s = min(2 * backoff_s, _MAX_BACKOFF_S)

    def _fail_waiting(self, error: Exception) -> None:
        """Fails the waiting callers if no worker is left, since a new one may never start."""
        if self._workers:
            return
        for slot in self._waiting:
            if not slot.done():
                message = f"no worker process can be started: {str(error).splitlines()[0]}"
                slot.set_exception(NoResultError(Status.FAILED, message, str(error), retry_alone=False))

    def _replace(self, worker: _Worker) -> None:
        """Kills the worker; the task that watches it starts another."""
        worker.was_killed = True
        worker.kill()

    async def _replace_when_it_ends(self, worker: _Worker) -> None:
        await worker.ended()
        self._workers.discard(worker)
        if worker in self._idle:
            self._idle.remove(worker)
        if not self._closing:
            how = "killed by this server" if worker.was_killed else how_it_ended(worker.returncode)
            log.warning("worker %d ended (%s) and is replaced", worker.pid, how)
            await self._add_with_retries()

    async def _died(self, worker: _Worker) -> NoResultError:
        worker.kill()  # it may have closed its connection and still be alive
        await worker.ended()
        how = how_it_ended(worker.returncode)
        return NoResultError(Status.FAILED, f"the worker process died while scoring ({how})", cost_worker=True)

    def _own(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._disown)

    def _disown(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("the task that watches a worker failed", exc_info=task.exception())


def _retrieve_exception(task: asyncio.Task[Any]) -> None:
    """Keeps asyncio from logging the end of a worker that nobody waits for any more, as when the server stops."""
    if not task.cancelled():
        task.exception()


class _Worker(ChildProcess):
    """One process of the pool, and its half of the protocol of `worker_process`."""

    was_killed = False

    async def load(self, scorers: Sequence[ScorerOptions]) -> dict[str, ScorerDescription]:
        try:
            answer = await self.ask(list(scorers))
        except ChildEndedError as error:
            await self.ended()
            raise ScorerLoadError(
                f"a worker process died while loading the scorers ({how_it_ended(self.returncode)}); its output is in "
                "the server's standard error"
            ) from error
        if "load_error" in answer:
            raise (ConfigError if answer["is_config"] else ScorerLoadError)(answer["load_error"])
        return {name: decode_description(description) for name, description in answer["descriptions"].items()}

    async def ask(self, message: Any) -> dict[str, Any]:
        """Sends a message and returns its answer."""
        await self.send(message)
        return await self.receive()
