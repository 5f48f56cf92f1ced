"""The executor that answers from the cache, and has the executor it wraps score what is not known.

Owns the rule of what is kept, and the deduplication of what is being scored. Knows nothing of gRPC and of how or where
scores are computed.

What is kept:

1. Only scores with status OK or NOT_APPLICABLE. A failed score is computed again for the next caller.
2. A completion's score, together with its values in the extra columns that the function logged.
3. A metric is a mean over a group. A result with metrics is therefore kept for the group as a whole, and used for the
   same group only, so that no metric is lost or taken over other completions. From the first such result on, the groups
   of that scorer are never scored in parts. The same holds for group-aware scorers.

Callers that ask for the same group at once share one computation and its outcome, failures and errors included. A
caller whose group has only some completions in common with a group that is being scored waits for those scores. If they
fail, it has them scored again, since another completion of the other group may be the cause.

Legend: G completions of a group.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from reward_server.cache.entries import Keys, keys_of, split
from reward_server.cache.single_flight import SingleFlight
from reward_server.errors import InvalidGroupError
from reward_server.execution.executors import Executor
from reward_server.execution.results import TimedResult, join_results
from reward_server.scorers.base import Result
from reward_server.types import Group


@dataclass
class CacheCounts:
    """Completions of one scorer. Each completion that is asked for counts once: as a hit, as shared or as a miss."""

    hits: int = 0
    """Completions whose score was in memory or on disk."""
    disk_hits: int = 0
    """Hits that were not in memory."""
    shared: int = 0
    """Completions that were being scored for another caller, or that occur in their group more than once."""
    misses: int = 0
    """Completions that were scored."""


class Results(Protocol):
    """The results that are known, and the groups that are being scored: the cache."""

    in_flight: SingleFlight[bytes, TimedResult]

    def in_memory(self, keys: Iterable[bytes]) -> dict[bytes, Result]: ...
    async def on_disk(self, keys: Sequence[bytes]) -> dict[bytes, Result]: ...
    def keep(self, results: Mapping[bytes, Result]) -> None: ...


class CachedExecutor:
    """Scores the groups of one scorer, each completion at most once."""

    def __init__(self, inner: Executor, known: Results, identity: bytes, group_aware: bool, counts: CacheCounts):
        """`identity` starts every key: what determines the scorer's scores."""
        self._inner = inner
        self._known = known
        self._identity = identity
        self._in_parts = not group_aware
        self._counts = counts
        self._claims: dict[bytes, asyncio.Future[Result | None]] = {}
        """The completions that are being scored, by key. The result is None in the end if the score failed."""

    @property
    def is_idle(self) -> bool:
        """Whether no completion is being scored."""
        return not self._claims

    async def run(self, group: Group) -> TimedResult:
        """The group's scores. Raises what the inner executor raises."""
        keys = keys_of(self._identity, group)
        if keys is None:
            return await self._inner.run(group)
        if (known := keys.joined(self._known.in_memory(keys.all))) is not None:
            self._counts.hits += len(group)
            return TimedResult(known)
        if self._known.in_flight.has(keys.group):
            self._counts.shared += len(group)
            return await self._known.in_flight.join(keys.group)
        return await self._known.in_flight.start(keys.group, self._score(group, keys))

    async def _score(self, group: Group, keys: Keys) -> TimedResult:
        found = self._known.in_memory(keys.all)
        stored = await self._known.on_disk([key for key in keys.all if key not in found])
        found |= stored
        if (known := keys.joined(found)) is not None:
            self._counts.hits += len(group)
            self._counts.disk_hits += len(group) if keys.group in stored else sum(key in stored for key in keys.each)
            return TimedResult(known)
        if self._in_parts and (timed := await self._score_missing(group, keys, found)) is not None:
            self._counts.disk_hits += sum(key in stored for key in keys.each)
            return timed
        timed = await self._inner.run(group)
        self._keep(keys, keys.each, timed.result)
        self._counts.misses += len(group)
        return timed

    async def _score_missing(self, group: Group, keys: Keys, found: Mapping[bytes, Result]) -> TimedResult | None:
        """The group's result, with what was not `found` scored by us or by callers that are scoring it already.

        None if the group has to be scored as a whole.
        """
        known, parts = dict(found), [TimedResult(Result(()))]
        misses = 0
        given_up: set[bytes] = set()  # these failed in another caller's group
        while missing := [key for key in dict.fromkeys(keys.each) if key not in known]:
            if mine := [key for key in missing if key not in self._claims or key in given_up]:
                part = await self._score_part(group, keys, mine)
                if part is None or part.result.metrics:
                    self._counts.misses += len(group) if part is not None else 0
                    return part
                known |= self._known.in_memory(missing) | split(mine, part.result)  # others may be known meanwhile
                parts.append(part)
                misses += len(mine)
            else:
                known |= await self._scored_by_others(missing)
                given_up.update(missing)
        self._count_parts(group, sum(key in found for key in keys.each), misses)
        result = join_results([known[key] for key in keys.each])
        return TimedResult(result, max(part.queued_s for part in parts), max(part.compute_s for part in parts))

    def _count_parts(self, group: Group, hits: int, misses: int) -> None:
        self._counts.hits += hits
        self._counts.misses += misses
        self._counts.shared += len(group) - hits - misses

    async def _scored_by_others(self, keys: Sequence[bytes]) -> dict[bytes, Result]:
        claims = {key: self._claims[key] for key in keys}
        await asyncio.wait(claims.values())
        return {key: result for key, claim in claims.items() if (result := claim.result()) is not None}

    async def _score_part(self, group: Group, keys: Keys, wanted: Sequence[bytes]) -> TimedResult | None:
        """Scores the wanted completions, in their order. None if they need the rest of the group."""
        is_whole = len(wanted) == len(group)
        claims: dict[bytes, asyncio.Future[Result | None]] = {
            key: asyncio.get_running_loop().create_future() for key in wanted if key not in self._claims
        }
        self._claims |= claims
        results: dict[bytes, Result] = {}
        try:
            timed = await self._inner.run(group if is_whole else keys.part_of(group, wanted))
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
        """Keeps the results without failures, and returns them by key."""
        whole = result.metrics or not self._in_parts
        results = {keys.group: result} if whole else split(scored, result)
        sound = {key: each for key, each in results.items() if not any(s.status.is_failure for s in each.scores)}
        self._known.keep(sound)
        return sound
