"""The scores of a server's deterministic scorers, by content: in memory and, if configured, on disk.

Owns the two stores, the counters and the computations in flight. The steps of one group are `cached_executor`'s, keys
and values are `entries`', the disk is `disk_store`'s.

    cache = Cache(max_bytes, store)
    await cache.open()
    executor = cache.around(executor, scorer, description)
    await cache.close()
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence

from reward_server.cache.cached_executor import CacheCounts, CachedExecutor
from reward_server.cache.disk_store import DiskStore
from reward_server.cache.entries import decode, encode, identity_of
from reward_server.cache.memory_store import MemoryStore
from reward_server.cache.single_flight import SingleFlight
from reward_server.execution.executors import Executor
from reward_server.execution.results import ScorerDescription, TimedResult
from reward_server.scorers.base import Result, Scorer

log = logging.getLogger("reward_server")


class Cache:
    """The scores of all deterministic scorers of a server."""

    def __init__(self, max_bytes: int, store: DiskStore | None = None):
        self.memory = MemoryStore(max_bytes)
        self.store = store
        self.in_flight: SingleFlight[bytes, TimedResult] = SingleFlight()
        """The groups that are being scored, by key."""
        self.counts: dict[str, CacheCounts] = {}
        """By the scorer's name."""

    async def open(self) -> None:
        """Opens the disk store, if there is one."""
        if self.store is not None:
            await self.store.open()

    async def close(self) -> None:
        """Cancels what is being scored, and writes what is not on disk yet."""
        await self.in_flight.close()
        if self.store is not None:
            await self.store.close()
        for name, counts in self.counts.items():
            log.info("cache of scorer %r: %s", name, counts)

    def around(self, inner: Executor, scorer: Scorer, description: ScorerDescription) -> CachedExecutor:
        """An executor that looks up the scorer's scores here, and asks `inner` for those that are not known."""
        counts = self.counts.setdefault(scorer.name, CacheCounts())
        return CachedExecutor(inner, self, identity_of(scorer, description), description.group_aware, counts)

    def in_memory(self, keys: Iterable[bytes]) -> dict[bytes, Result]:
        """The results of those keys that are in memory."""
        return {key: decode(value) for key in keys if (value := self.memory.get(key)) is not None}

    async def on_disk(self, keys: Sequence[bytes]) -> dict[bytes, Result]:
        """The results of those keys that are on disk. They are put into memory too."""
        values = await self.store.get(keys) if self.store is not None else {}
        for key, value in values.items():
            self.memory.put(key, value)
        return {key: decode(value) for key, value in values.items()}

    def keep(self, results: Mapping[bytes, Result]) -> None:
        """Keeps results, in memory and on disk."""
        values = {key: encode(result) for key, result in results.items()}
        for key, value in values.items():
            self.memory.put(key, value)
        if self.store is not None and values:
            self.store.put(values)
