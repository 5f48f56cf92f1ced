"""Worker processes for scorers that are synchronous code: started, fed, killed when they hang, replaced when they die.

Owns the pool of them and the queue before it; a single process and its line are `child`'s. Knows nothing of gRPC, and
of scorers only their names.

    pool = WorkerPool(options, size=4)
    await pool.start()                          load errors of user code are raised here
    timed = await pool.run(name, group, timeout_s=60)
    await pool.close()

Each worker loads every scorer and scores one group at a time. The first is loaded before `start` returns, the others
while the server already serves.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine, Sequence
from typing import Any

from reward_server.errors import ConfigError, ScorerLoadError
from reward_server.execution.fair_queue import FairQueue, current_caller
from reward_server.execution.results import NoResultError, ScorerDescription, TimedResult, over_limit
from reward_server.execution.worker_process import decode_answer, decode_description
from reward_server.processes.child import Child, ChildEndedError
from reward_server.processes.lifetime import how_it_ended
from reward_server.scorers.base import ScorerOptions
from reward_server.types import Group, Status

log = logging.getLogger("reward_server")

_CANCELLED_GRACE_S = 1.0  # a cancelled caller's group may end by itself; starting a worker anew costs more than this
_LONGEST_BACKOFF_S = 30.0


class WorkerPool:
    """`size` workers and the callers that wait for one, in fair order."""

    def __init__(self, scorers: Sequence[ScorerOptions], size: int, memory_bytes: int | None = None):
        """Each worker may hold `memory_bytes` of data, anything if that is None."""
        self._scorers = list(scorers)
        self._size = size
        self._memory_bytes = memory_bytes
        self._workers: set[_Worker] = set()
        self._idle: list[_Worker] = []
        self._waiting: FairQueue[asyncio.Future[_Worker]] = FairQueue()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False
        self.descriptions: dict[str, ScorerDescription] = {}
        """What is known of each scorer, by name, once the pool has started."""

    @property
    def pids(self) -> list[int]:
        """The processes of the workers that are loaded."""
        return [worker.pid for worker in self._workers]

    async def start(self) -> None:
        """Loads the scorers in a first worker and begins to start the others.

        Raises ScorerLoadError, with the user's traceback, or ConfigError.
        """
        self.descriptions = await self._add_worker()
        for _ in range(self._size - 1):
            self._own(self._add_until_it_holds())

    async def run(self, name: str, group: Group, timeout_s: float) -> TimedResult:
        """Scores a group; the limit counts from when a worker takes it up.

        Raises NoResultError where the scorer raises, outlasts the limit or takes its process down.
        """
        asked = time.perf_counter()
        worker = await self._take()
        began = time.perf_counter()
        asking = asyncio.create_task(worker.ask((name, group)))
        try:
            await asyncio.wait({asking}, timeout=timeout_s)
        except asyncio.CancelledError:
            self._own(self._finish_unwanted(worker, asking))
            raise
        if not asking.done():
            asking.cancel()
            self._replace(worker)
            raise over_limit(timeout_s, "; its worker was killed and replaced", cost_worker=True)
        if isinstance(asking.exception(), ChildEndedError):
            raise await self._died(worker)
        self._give(worker)
        return TimedResult(decode_answer(asking.result()), began - asked, time.perf_counter() - began)

    async def close(self) -> None:
        """Ends every worker, those that still run something too."""
        self._closing = True
        for waiting in self._waiting:
            waiting.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, *(worker.close() for worker in self._workers), return_exceptions=True)
        self._workers.clear()

    # ------------------------------------------------------------------------------------------------------ the queue

    async def _take(self) -> _Worker:
        while self._idle:
            worker = self._idle.pop()
            if worker.is_alive:
                return worker
        place: asyncio.Future[_Worker] = asyncio.get_running_loop().create_future()
        self._waiting.put(place, current_caller.get())
        try:
            return await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled() and place.exception() is None:
                self._give(place.result())  # given and cancelled in the same turn of the loop
            raise
        finally:
            self._waiting.discard(place)

    def _give(self, worker: _Worker) -> None:
        while self._waiting:
            place = self._waiting.get()
            if not place.done():
                place.set_result(worker)
                return
        self._idle.append(worker)

    async def _finish_unwanted(self, worker: _Worker, asking: asyncio.Task[Any]) -> None:
        await asyncio.wait({asking}, timeout=_CANCELLED_GRACE_S)
        if asking.done() and asking.exception() is None:
            self._give(worker)
        else:
            asking.cancel()
            self._replace(worker)

    # ------------------------------------------------------------------------------------------------ lives and deaths

    async def _add_worker(self) -> dict[str, ScorerDescription]:
        worker = await _Worker.start("reward_server.execution.worker_process", self._memory_bytes or 0)
        try:
            descriptions = await worker.load(self._scorers)
            self._refuse_other_code(descriptions)
        except BaseException:
            await worker.close(grace_s=0)
            raise
        self._workers.add(worker)
        self._own(self._replace_when_it_ends(worker))
        self._give(worker)
        return descriptions

    def _refuse_other_code(self, descriptions: dict[str, ScorerDescription]) -> None:
        """Raises ScorerLoadError where a later worker has loaded other code than the first: one version serves."""
        for name, description in self.descriptions.items():
            if descriptions[name] != description:
                raise ScorerLoadError(
                    f"scorer {name!r}: its code has changed since the server loaded it (version "
                    f"{description.version}, now {descriptions[name].version}); load it everywhere by "
                    "SIGHUP, or put the old code back"
                )

    async def _add_until_it_holds(self) -> None:
        backoff_s = 1.0
        while not self._closing:
            try:
                await self._add_worker()
                return
            except (OSError, ScorerLoadError, ConfigError) as error:
                log.error("a worker cannot be started, next try in %g s: %s", backoff_s, error)
                self._refuse_waiting(error)
            await asyncio.sleep(backoff_s)
            backoff_s = min(2 * backoff_s, _LONGEST_BACKOFF_S)

    def _refuse_waiting(self, error: Exception) -> None:
        """With no worker left nobody is to wait for one that may never come."""
        if self._workers:
            return
        for place in self._waiting:
            if not place.done():
                message = f"no worker process can be started: {str(error).splitlines()[0]}"
                place.set_exception(NoResultError(Status.FAILED, message, str(error), retry_alone=False))

    def _replace(self, worker: _Worker) -> None:
        """Kills it; its watcher starts the next."""
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
            await self._add_until_it_holds()

    async def _died(self, worker: _Worker) -> NoResultError:
        worker.kill()  # it may have closed the line and live on
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
            log.error("a worker's keeper failed", exc_info=task.exception())


class _Worker(Child):
    """One process of the pool."""

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
        """Sends a message and returns the answer to it."""
        await self.send(message)
        return await self.receive()
