"""The loaded scorers of one configuration: chooses those that a group asks for, and joins their answers.

Owns admission, the choice of scorers and running them side by side. What happens to a group on its way through one
scorer is the business of that scorer's executors (`served_scorer`). Knows nothing of gRPC or processes.

    scorers = ScorerSet(config)
    await scorers.load()
    scorers.observe(metrics)                optional
    scorers.admit(group)                    raises InvalidGroupError
    scores = await scorers.score(group)
    await scorers.close()

Legend: S scorers.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence

from reward_server import __version__
from reward_server.cache.cache import Cache
from reward_server.cache.disk_store import DiskStore
from reward_server.config import ServerConfig, digest_of
from reward_server.errors import GroupTooLargeError, InvalidGroupError
from reward_server.execution.batch_executor import BatchExecutor
from reward_server.execution.batcher import Batcher
from reward_server.execution.composite_executor import CompositeExecutor
from reward_server.execution.executors import ScorerExecutor
from reward_server.execution.tasks import all_of
from reward_server.execution.worker_pool import WorkerPool
from reward_server.observability.metrics import Metrics, Source
from reward_server.scorers.base import ExecutorKind, Scorer
from reward_server.scorers.composite import CompositeScorer
from reward_server.scorers.loading import did_you_mean
from reward_server.scorers.registry import build
from reward_server.serving.served_scorer import ServedScorer, executor_for
from reward_server.types import WIRE_VERSION, Group, GroupScores, Limits, ScorerInfo, ServerInfo
from reward_server.wire_groups import MAX_GROUPS

log = logging.getLogger("reward_server")


class ScorerSet:
    """S scorers, each with its executors."""

    def __init__(
        self,
        config: ServerConfig,
        keep: bool = True,
        elsewhere: Callable[[Scorer], ScorerExecutor] | None = None,
        max_groups: int = MAX_GROUPS,
    ):
        """With `keep` false nothing outlives a group: there is no cache, and composites do not save statistics.

        With `elsewhere` no scorer is loaded in this process: it gives the executor that reaches a scorer where it runs.
        `max_groups` is what callers are told of the most groups in a call.
        """
        self._config = config
        self._keep = keep
        self._elsewhere = elsewhere
        self._limits = Limits(config.limits.max_group_bytes, config.limits.max_completions, max_groups)
        self._scorers = [build(options) for options in config.scorers]
        here = list(_with_parts(self._scorers)) if elsewhere is None else []
        in_workers = [scorer.options for scorer in here if scorer.place is ExecutorKind.WORKER]
        self._pool = WorkerPool(in_workers, config.workers, config.worker_memory_bytes) if in_workers else None
        self.cache = _cache(config) if keep and here else None
        """None if it is off."""
        self._loaded: list[ServedScorer] = []
        """Parts of composites too, before their composite."""
        self._served: tuple[ServedScorer, ...] = ()
        """The S scorers, in the order of the configuration."""
        self._counters: Sequence[Source] = ()
        self._info: ServerInfo | None = None

    @property
    def info(self) -> ServerInfo:
        """The description of the server for its callers. Available once the scorers are loaded."""
        assert self._info is not None, "load() comes first"
        return self._info

    @property
    def scorers(self) -> Sequence[Scorer]:
        """The scorers in the order of the configuration, loaded or not."""
        return self._scorers

    @property
    def worker_pids(self) -> list[int]:
        return self._pool.pids if self._pool else []

    @property
    def batchers(self) -> dict[str, Batcher]:
        """The batchers of the scorers that batch, parts of composites included, by the scorer's name."""
        executors = {served.info.name: served.executor for served in self._loaded}
        return {name: executor.batcher for name, executor in executors.items() if isinstance(executor, BatchExecutor)}

    async def load(self) -> None:
        """Loads every scorer where it will run. Raises ScorerLoadError, with the user's traceback, or ConfigError."""
        try:
            if self.cache:
                await self.cache.open()
            if self._pool:
                await self._pool.start()
            self._served = tuple([await self._serve(scorer) for scorer in self._scorers])
        except BaseException:
            await self.close()
            raise
        batches = [("batch", name, batcher.stats) for name, batcher in self.batchers.items()]
        lookups = self.cache.counts.items() if self.cache else ()
        self._counters = (*batches, *(("cache", name, counts) for name, counts in lookups))
        infos = tuple(served.info for served in self._served)
        digest = digest_of(self._config.scorers, [info.version for info in infos])
        self._info = ServerInfo(WIRE_VERSION, __version__, digest, infos, self._limits)

    async def close(self) -> None:
        """Ends the workers and frees what the scorers hold."""
        if self.cache:
            await self.cache.close()
        for served in self._loaded:
            try:
                await served.executor.close()
            except Exception:
                log.exception("closing scorer %r raised", served.info.name)
        if self._pool:
            await self._pool.close()

    def observe(self, metrics: Metrics) -> None:
        """Counts and traces what every scorer does from now on. Call it once, after `load`."""
        for served in self._served:
            served.observe(metrics)

    def counters(self) -> Sequence[Source]:
        """The plain counters of batchers and of the cache. Empty before `load`."""
        return self._counters

    def admit(self, group: Group) -> None:
        """Raises InvalidGroupError if the group cannot be scored: too large, unknown scorer, missing column."""
        self.admit_size(len(group), group.group_id)
        for served in self._chosen(group):
            for column in served.info.required_columns:
                if column not in group.columns:
                    served.scorer.column(group, column)  # raises unless every completion has its own value

    def admit_size(self, completions: int, group_id: str) -> None:
        """Raises GroupTooLargeError if a group has more completions than the server takes."""
        if completions > self._limits.max_completions:
            raise GroupTooLargeError(
                f"group {group_id!r} has {completions} completions and this server takes "
                f"{self._limits.max_completions}: raise limits.max_completions in its configuration"
            )

    def infos(self, scorers: Sequence[str]) -> Sequence[ScorerInfo]:
        """The descriptions of the scorers of these names, all for none."""
        return [info for info in self.info.scorers if not scorers or info.name in scorers]

    async def score(self, group: Group) -> GroupScores:
        """The scores of the chosen scorers, which run side by side. A failure is a status, never an exception.

        Raises InvalidGroupError where a scorer finds that the group itself is at fault.
        """
        chosen = self._chosen(group)
        if len(chosen) == 1:  # a task costs more than all else here
            (served,) = chosen
            timed = await served.run(group)
            scores, digest = (served.scores(timed),), self.info.config_digest
            return GroupScores(group.group_id, scores, digest, timed.queued_s, timed.compute_s)
        answers = await all_of(*[served.run(group) for served in chosen])
        return GroupScores(
            group.group_id,
            tuple([served.scores(timed) for served, timed in zip(chosen, answers, strict=True)]),
            self.info.config_digest,
            max([timed.queued_s for timed in answers]),
            max([timed.compute_s for timed in answers]),
        )

    def _chosen(self, group: Group) -> Sequence[ServedScorer]:
        if not group.scorers:
            return self._served
        known = [served.info.name for served in self._served]
        for name in group.scorers:
            if name not in known:
                raise InvalidGroupError(
                    f"there is no scorer {name!r} on this server{did_you_mean(name, known)}; it has {', '.join(known)}"
                )
        return [served for served in self._served if served.info.name in group.scorers]

    async def _serve(self, scorer: Scorer) -> ServedScorer:
        if self._elsewhere is not None:
            remote = self._elsewhere(scorer)
            served = ServedScorer(scorer, remote, await remote.load(), cache=None)
        elif isinstance(scorer, CompositeScorer):  # its parts are cached, and it takes no time beyond them
            composite = CompositeExecutor(scorer, [await self._serve(part) for part in scorer.parts], self._keep)
            served = ServedScorer(scorer, composite, await composite.load(), cache=None)
        else:
            own = executor_for(scorer, self._pool)
            served = ServedScorer(scorer, own, await own.load(), self.cache)
        self._loaded.append(served)
        return served


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
