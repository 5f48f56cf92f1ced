"""The loaded scorers of one configuration, and what they say of a group.

Owns admission, which scorers run, their running beside one another, and what becomes of a group whose scorer failed:
the completions are tried one by one, so that a bad one costs its own score only. Knows nothing of gRPC or processes.

    scorers = ScorerSet(config)
    await scorers.load()
    scorers.admit(group)                    raises InvalidGroupError
    scores = await scorers.score(group)
    await scorers.close()

Legend: G completions of a group, S scorers.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Sequence

from reward_server import __version__
from reward_server.cache.cache import Cache
from reward_server.cache.store import DiskStore
from reward_server.config import ServerConfig, digest_of
from reward_server.errors import GroupTooLargeError, InvalidGroupError
from reward_server.execution.batch_executor import BatchExecutor
from reward_server.execution.batcher import Batcher
from reward_server.execution.composite_executor import CompositeExecutor
from reward_server.execution.executors import Executor, LoopExecutor, ThreadExecutor, WorkerExecutor
from reward_server.execution.quarantine import Quarantine
from reward_server.execution.results import NoResultError, ScorerDescription, TimedResult, joined
from reward_server.execution.tasks import all_of
from reward_server.execution.worker_pool import WorkerPool
from reward_server.observability import tracing
from reward_server.observability.metrics import Metrics, Source
from reward_server.scorers.base import ExecutorKind, Result, Scorer, failed
from reward_server.scorers.batched import BatchedScorer
from reward_server.scorers.composite import CompositeScorer
from reward_server.scorers.loading import did_you_mean
from reward_server.scorers.registry import build
from reward_server.types import WIRE_VERSION, Group, GroupScores, Limits, ScorerInfo, ScorerScores, ServerInfo, Status

log = logging.getLogger("reward_server")

_NOT_TRIED = NoResultError(Status.FAILED, "")


class ScorerSet:
    """S scorers, each in its place."""

    def __init__(self, config: ServerConfig, keep: bool = True):
        """With `keep` false nothing is left behind and nothing found: no cache, and no composite gathers."""
        self._config = config
        self._keep = keep
        self._limits = Limits(config.limits.max_group_bytes, config.limits.max_completions)
        self._scorers = [build(options) for options in config.scorers]
        in_workers = [scorer.options for scorer in _with_parts(self._scorers) if scorer.place is ExecutorKind.WORKER]
        self._pool = WorkerPool(in_workers, config.workers, config.worker_memory_bytes) if in_workers else None
        self.cache = _cache(config) if keep else None
        """None if it is off."""
        self._served: list[_Served] = []
        """Parts of composites too, those before their composite."""
        self._by_name: dict[str, _Served] = {}
        self._info: ServerInfo | None = None

    @property
    def info(self) -> ServerInfo:
        """What the server is. Known once loaded."""
        assert self._info is not None, "load() comes first"
        return self._info

    @property
    def scorers(self) -> Sequence[Scorer]:
        """In the order of the configuration, loaded or not."""
        return self._scorers

    @property
    def worker_pids(self) -> list[int]:
        return self._pool.pids if self._pool else []

    @property
    def batchers(self) -> dict[str, Batcher]:
        """Those of the scorers that batch, a composite's parts too, by the scorer's name; for their counters."""
        served = [(served.info.name, served.place) for served in self._served]
        return {name: place.batcher for name, place in served if isinstance(place, BatchExecutor)}

    async def load(self) -> None:
        """Loads every scorer where it will run. Raises ScorerLoadError, with the user's traceback, or ConfigError."""
        try:
            if self.cache:
                await self.cache.open()
            if self._pool:
                await self._pool.start()
            for scorer in self._scorers:
                self._by_name[scorer.name] = await self._serve(scorer)
        except BaseException:
            await self.close()
            raise
        infos = tuple(served.info for served in self._by_name.values())
        digest = digest_of(self._config.scorers, [info.version for info in infos])
        self._info = ServerInfo(WIRE_VERSION, __version__, digest, infos, self._limits)

    async def close(self) -> None:
        """Ends the workers and frees what the scorers hold."""
        if self.cache:
            await self.cache.close()
        for served in self._served:
            try:
                await served.place.close()
            except Exception:
                log.exception("closing scorer %r raised", served.info.name)
        if self._pool:
            await self._pool.close()

    def admit(self, group: Group) -> None:
        """Raises InvalidGroupError for what cannot be scored here: too large, unknown scorer, missing column."""
        if len(group) > self._limits.max_completions:
            raise GroupTooLargeError(
                f"group {group.group_id!r} has {len(group)} completions and this server takes "
                f"{self._limits.max_completions}: raise limits.max_completions in its configuration"
            )
        for served in self._chosen(group):
            for column in served.info.required_columns:
                if column not in group.columns:
                    served.scorer.column(group, column)  # raises unless each completion has its own

    def counters(self) -> Iterator[Source]:
        """Who counts what in plain attributes: its batchers and its cache, if it has some."""
        for name, batcher in self.batchers.items():
            yield "batch", name, batcher.stats
        for name, counts in (self.cache.counts if self.cache else {}).items():
            yield "cache", name, counts

    async def score(self, group: Group, metrics: Metrics | None = None) -> GroupScores:
        """What the chosen scorers say of the group, side by side. A failure is a status, never an exception.

        Raises InvalidGroupError where a scorer finds that the group itself is at fault.
        """
        chosen = self._chosen(group)
        if len(chosen) == 1:
            answers = [await _ask(chosen[0], group, metrics)]
        else:
            answers = await all_of(*(_ask(served, group, metrics) for served in chosen))
        return GroupScores(
            group.group_id,
            tuple([served.scores(timed.result) for served, timed in zip(chosen, answers, strict=True)]),
            self.info.config_digest,
            max([timed.queued_s for timed in answers]),
            max([timed.compute_s for timed in answers]),
        )

    def _chosen(self, group: Group) -> list[_Served]:
        if not group.scorers:
            return list(self._by_name.values())
        for name in group.scorers:
            if name not in self._by_name:
                raise InvalidGroupError(
                    f"there is no scorer {name!r} on this server{did_you_mean(name, self._by_name)}; "
                    f"it has {', '.join(self._by_name)}"
                )
        return [served for name, served in self._by_name.items() if name in group.scorers]

    async def _serve(self, scorer: Scorer) -> _Served:
        if isinstance(scorer, CompositeScorer):  # its parts are cached, and it costs nothing beyond them
            place: Executor = CompositeExecutor(scorer, [await self._serve(part) for part in scorer.parts], self._keep)
            served = _Served(scorer, await place.load(), place, None)
        else:
            place = self._place(scorer)
            served = _Served(scorer, await place.load(), place, self.cache)
        self._served.append(served)
        return served

    def _place(self, scorer: Scorer) -> Executor:
        if scorer.place is ExecutorKind.LOOP:
            return LoopExecutor(scorer)
        if scorer.place is ExecutorKind.THREAD:
            return ThreadExecutor(scorer)
        if isinstance(scorer, BatchedScorer):
            return BatchExecutor(scorer)
        assert self._pool is not None
        return WorkerExecutor(scorer, self._pool)


def _with_parts(scorers: Sequence[Scorer]) -> Iterator[Scorer]:
    for scorer in scorers:
        yield scorer
        if isinstance(scorer, CompositeScorer):
            yield from _with_parts(scorer.parts)


def _cache(config: ServerConfig) -> Cache | None:
    if config.cache is None:
        return None
    store = DiskStore(config.cache.path, config.cache.max_disk_bytes) if config.cache.path else None
    return Cache(config.cache.max_bytes, store)


class _Served:
    """One scorer in its place, with what a group is worth that it fails on."""

    def __init__(self, scorer: Scorer, description: ScorerDescription, place: Executor, cache: Cache | None):
        self.scorer = scorer
        self.place = place
        self._quarantine = Quarantine()
        self._cached = cache.of(scorer, description) if cache and description.deterministic else None
        self.info = ScorerInfo(
            scorer.name,
            scorer.options.type,
            description.version,
            scorer.options.weight,
            description.deterministic,
            description.group_aware,
            description.required_columns,
        )

    def scores(self, result: Result) -> ScorerScores:
        info = self.info
        return ScorerScores(info.name, info.version, info.weight, result.scores, result.metrics, result.extra)

    async def score(self, group: Group) -> TimedResult:
        if self._cached is not None:
            return await self._cached.score(group, self._score)
        return await self._score(group)

    async def _score(self, group: Group) -> TimedResult:
        if not self.info.group_aware and len(group) > 1 and self._quarantine.holds(group, whole=False):
            return await self._score_one_by_one(group, _NOT_TRIED)
        try:
            return await self._run(group)
        except NoResultError as failure:
            self._log(failure, group)
            if self.info.group_aware or not failure.retry_alone or len(group) == 1:
                return TimedResult(Result(failed(len(group), failure.status, failure.message)))
            first = failure
        return await self._score_one_by_one(group, first)

    async def _score_one_by_one(self, group: Group, first: NoResultError) -> TimedResult:
        alone = [dataclasses.replace(group, completions=(completion,)) for completion in group.completions]
        answers = await all_of(*(self._score_alone(single, index, first) for index, single in enumerate(alone)))
        return TimedResult(
            joined([timed.result for timed in answers]),
            max(timed.queued_s for timed in answers),
            max(timed.compute_s for timed in answers),
        )

    async def _score_alone(self, group: Group, index: int, first: NoResultError) -> TimedResult:
        try:
            return await self._run(group)
        except NoResultError as failure:
            if failure.message != first.message:  # else the log has it, with its traceback
                self._log(failure, group, f", completion {index} alone")
            return TimedResult(Result(failed(1, failure.status, failure.message)))

    async def _run(self, group: Group) -> TimedResult:
        whole = self.info.group_aware
        self._quarantine.refuse(group, whole)
        try:
            timed = await self.place.run(group)
        except NoResultError as failure:
            self._quarantine.note(group, whole, failure)
            raise
        self._quarantine.note(group, whole, None)
        return timed

    def _log(self, failure: NoResultError, group: Group, which: str = "") -> None:
        what = f"scorer {self.info.name!r}, group {group.group_id!r}{which}: {failure.status.name}"
        log.warning("%s: %s%s", what, failure.message, f"\n{failure.details.rstrip()}" if failure.details else "")


async def _ask(served: _Served, group: Group, metrics: Metrics | None) -> TimedResult:
    if metrics is None:
        return await served.score(group)
    name = served.info.name
    with metrics.scoring(name) as note, tracing.span("reward.scorer", {"scorer": name}) as span:
        timed = await served.score(group)
        note(timed)
        span.set_attributes({"queued_s": timed.queued_s, "compute_s": timed.compute_s})
        return timed
