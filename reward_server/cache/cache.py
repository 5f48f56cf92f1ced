"""Scores of deterministic scorers by content: what was scored before is looked up, what is being scored is waited for.

Owns the single flight and the rule of what is kept. Knows nothing of gRPC, of places or of kinds of scorers: it is
handed an async function that scores. Keys, values and memory are `entries`', the disk behind them is `store`'s.

    cache = Cache(max_bytes, store)
    await cache.open()
    cached = cache.of(scorer, description)
    timed = await cached.score(group, compute)      computes what nobody knows, and nothing twice at once
    await cache.close()

What is kept:

1. Only OK and NOT_APPLICABLE. A failure is tried again by whoever asks next.
2. A completion's score together with its entries of the function's extra columns, which are so given again with it.
3. A metric is a mean over a group. A result that has metrics is kept as its whole group's, and given again for the same
   group only: so none is lost, and none counts for completions that it was not taken over. From the first such result
   on, that scorer's groups are never scored in parts. The same holds for scorers that are aware of the group.

Callers that ask for the same group at once share one computation and whatever comes of it, failures and errors too. It
is cancelled when the last of them has left. A caller whose group has only some completions in common with one that is
being scored waits for those scores; if they fail, it scores by itself, since the other group may be what they fail on.

Legend: G completions of a group.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reward_server.cache.entries import Keys, MemoryStore, decoded, encoded, identity_of, keys_of, split
from reward_server.cache.store import DiskStore
from reward_server.errors import InvalidGroupError
from reward_server.execution.results import ScorerDescription, TimedResult, joined
from reward_server.scorers.base import Result, Scorer
from reward_server.types import Group

log = logging.getLogger("reward_server")

Compute = Callable[[Group], Awaitable[TimedResult]]


@dataclass
class CacheCounts:
    """Completions of one scorer, each that is asked for counted once: as a hit, as shared or as a miss."""

    hits: int = 0
    """Their score was in memory or on disk."""
    disk_hits: int = 0
    """Hits that were not in memory."""
    shared: int = 0
    """They were just being scored for another caller, or a sibling is the same."""
    misses: int = 0
    """They were scored."""


class Cache:
    """The scores of all deterministic scorers of a server."""

    def __init__(self, max_bytes: int, store: DiskStore | None = None):
        self.memory = MemoryStore(max_bytes)
        self.store = store
        self.counts: dict[str, CacheCounts] = {}
        """By the scorer's name."""
        self._tasks: set[asyncio.Task[TimedResult]] = set()

    async def open(self) -> None:
        """Opens the store, if there is one."""
        if self.store is not None:
            await self.store.open()

    async def close(self) -> None:
        """Ends what is still being scored, and writes what is not yet on disk."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self.store is not None:
            await self.store.close()
        for name, counts in self.counts.items():
            log.info("cache of scorer %r: %s", name, counts)

    def of(self, scorer: Scorer, description: ScorerDescription) -> ScorerCache:
        """The part of one scorer."""
        counts = self.counts.setdefault(scorer.name, CacheCounts())
        return ScorerCache(self, identity_of(scorer, description), description.group_aware, counts)

    def remembered(self, keys: Iterable[bytes]) -> dict[bytes, Result]:
        """What memory has of these keys."""
        return {key: decoded(value) for key in keys if (value := self.memory.get(key)) is not None}

    async def stored(self, keys: Sequence[bytes]) -> dict[bytes, Result]:
        """What the disk has of these keys; from now on memory has it too."""
        values = await self.store.get(keys) if self.store is not None else {}
        for key, value in values.items():
            self.memory.put(key, value)
        return {key: decoded(value) for key, value in values.items()}

    def keep(self, results: Mapping[bytes, Result]) -> None:
        """Keeps results."""
        values = {key: encoded(result) for key, result in results.items()}
        for key, value in values.items():
            self.memory.put(key, value)
        if self.store is not None and values:
            self.store.put(values)

    def start(self, coroutine: Coroutine[Any, Any, TimedResult]) -> asyncio.Task[TimedResult]:
        """A computation that outlives the caller who began it."""
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


class ScorerCache:
    """One scorer's scores."""

    def __init__(self, cache: Cache, identity: bytes, group_aware: bool, counts: CacheCounts):
        self._cache = cache
        self._identity = identity
        self._in_parts = not group_aware
        self._counts = counts
        self._flights: dict[bytes, _Flight] = {}
        """Groups that are being scored."""
        self._claims: dict[bytes, asyncio.Future[Result | None]] = {}
        """Completions that are being scored, each in one of those groups; None in the end if there is no score."""

    async def score(self, group: Group, compute: Compute) -> TimedResult:
        """The group's scores, `compute`d where nobody knows them. Raises what `compute` raises."""
        keys = keys_of(self._identity, group)
        if keys is None:
            return await compute(group)
        if (known := keys.joined(self._cache.remembered(keys.all))) is not None:
            self._counts.hits += len(group)
            return TimedResult(known)
        if (flight := self._flights.get(keys.group)) is not None:
            self._counts.shared += len(group)
        else:
            flight = self._flights[keys.group] = _Flight(self._cache.start(self._score(group, keys, compute)))
        return await self._landed(flight, keys.group)

    async def _landed(self, flight: _Flight, key: bytes) -> TimedResult:
        """What comes of a flight. It ends when the last who waits for it leaves."""
        flight.callers += 1
        try:
            return await asyncio.shield(flight.task)
        finally:
            flight.callers -= 1
            if not flight.callers:
                del self._flights[key]  # who comes now begins a new one
                flight.task.cancel()  # nothing happens if it has landed

    async def _score(self, group: Group, keys: Keys, compute: Compute) -> TimedResult:
        found = self._cache.remembered(keys.all)
        stored = await self._cache.stored([key for key in keys.all if key not in found])
        found |= stored
        if (known := keys.joined(found)) is not None:
            self._counts.hits += len(group)
            self._counts.disk_hits += len(group) if keys.group in stored else sum(key in stored for key in keys.each)
            return TimedResult(known)
        if self._in_parts:
            timed = await self._score_missing(group, keys, found, compute)
            if timed is not None:
                self._counts.disk_hits += sum(key in stored for key in keys.each)
                return timed
        timed = await compute(group)
        self._keep(keys, keys.each, timed.result)
        self._counts.misses += len(group)
        return timed

    async def _score_missing(
        self, group: Group, keys: Keys, found: Mapping[bytes, Result], compute: Compute
    ) -> TimedResult | None:
        """The group, when what was not `found` is scored, by us or by who does so already; None if that cannot be."""
        known, parts = dict(found), [TimedResult(Result(()))]
        misses = 0
        given_up: set[bytes] = set()  # they failed with somebody else's siblings
        while missing := [key for key in dict.fromkeys(keys.each) if key not in known]:
            if mine := [key for key in missing if key not in self._claims or key in given_up]:
                part = await self._score_part(group, keys, mine, compute)
                if part is None or part.result.metrics:
                    self._counts.misses += len(group) if part is not None else 0
                    return part
                known |= self._cache.remembered(missing) | split(mine, part.result)  # others are done meanwhile
                parts.append(part)
                misses += len(mine)
            else:
                known |= await self._scored_by_others(missing)
                given_up.update(missing)
        hits = sum(key in found for key in keys.each)
        self._counts.hits += hits
        self._counts.misses += misses
        self._counts.shared += len(group) - hits - misses
        result = joined([known[key] for key in keys.each])
        return TimedResult(result, max(part.queued_s for part in parts), max(part.compute_s for part in parts))

    async def _scored_by_others(self, keys: Sequence[bytes]) -> dict[bytes, Result]:
        claims = {key: self._claims[key] for key in keys}
        await asyncio.wait(claims.values())
        return {key: result for key, claim in claims.items() if (result := claim.result()) is not None}

    async def _score_part(
        self, group: Group, keys: Keys, wanted: Sequence[bytes], compute: Compute
    ) -> TimedResult | None:
        """The wanted completions, in their order; None if they cannot be scored without their siblings."""
        is_whole = len(wanted) == len(group)
        claims: dict[bytes, asyncio.Future[Result | None]] = {
            key: asyncio.get_running_loop().create_future() for key in wanted if key not in self._claims
        }
        self._claims |= claims
        results: dict[bytes, Result] = {}
        try:
            timed = await compute(group if is_whole else keys.part_of(group, wanted))
            results = self._keep(keys, wanted, timed.result) if is_whole or not timed.result.metrics else {}
        except InvalidGroupError:
            if is_whole:
                raise
            return None
        finally:
            for key, claim in claims.items():
                del self._claims[key]
                claim.set_result(results.get(key))
        if timed.result.metrics:
            self._in_parts = False
        return timed if is_whole or not timed.result.metrics else None

    def _keep(self, keys: Keys, scored: Sequence[bytes], result: Result) -> dict[bytes, Result]:
        """Keeps what is sound of a result, and returns it by key."""
        whole = result.metrics or not self._in_parts
        results = {keys.group: result} if whole else split(scored, result)
        sound = {key: each for key, each in results.items() if not any(s.status.is_failure for s in each.scores)}
        self._cache.keep(sound)
        return sound


class _Flight:
    """A group that is being scored, and how many wait for it."""

    def __init__(self, task: asyncio.Task[TimedResult]):
        self.task = task
        self.callers = 0
