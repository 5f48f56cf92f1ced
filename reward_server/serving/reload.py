"""Replaces the configuration of a server that serves: the new one is loaded, tested on a sample, and switched to.

Owns which scorers are current and how long their predecessors live. Knows nothing of gRPC, signals or processes, nor of
where a new configuration comes from.

    current = CurrentScorers(scorers)
    with current.held() as scorers: ...         one set for one group, whatever is switched to meanwhile
    new = await loaded_and_tested(config, sample)
    current.switch(new)                         for every new group; the old set closes when its last group is done
    await current.close()
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable

from reward_server.config import ServerConfig
from reward_server.errors import ScorerLoadError
from reward_server.serving.scorer_set import ScorerSet
from reward_server.serving.selftest import failures_on, made_up
from reward_server.types import Group, ServerInfo

log = logging.getLogger("reward_server")

# A large model takes minutes to load. A load that takes longer hangs, and would block every later reload.
_LOAD_TIMEOUT_S = 900.0

# The fields that a reload takes over. The others belong to the sockets and processes, which a switch does not touch.
_RELOADED = frozenset({"scorers", "workers", "worker_memory_bytes", "cache", "limits", "drain_grace_s"})


class CurrentScorers:
    """The set of scorers for new groups, and the earlier sets that still have groups in flight."""

    def __init__(self, scorers: ScorerSet):
        self._current = _Held(scorers)
        self.example: Group | None = None
        """The last group that was scored without a failure. The next configuration is tested on it."""
        self._retiring: set[asyncio.Task[None]] = set()

    @property
    def scorers(self) -> ScorerSet:
        return self._current.scorers

    @property
    def info(self) -> ServerInfo:
        return self.scorers.info

    def held(self) -> _Held:
        """A block in which the current set stays open, whatever is switched to meanwhile."""
        return self._current

    def switch(self, scorers: ScorerSet) -> None:
        """Scores every new group with a set that is loaded."""
        old, self._current = self._current, _Held(scorers)
        log.info("configuration %s serves, in place of %s", _short(scorers), _short(old.scorers))
        task = asyncio.create_task(old.close_when_done())
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    async def close(self) -> None:
        """Closes all sets, including those that still have groups in flight."""
        for task in self._retiring:
            task.cancel()
        await asyncio.gather(*self._retiring, return_exceptions=True)
        await self._current.scorers.close()


class _Held:
    """A set and the number of groups that it is scoring, each of which is a `with` block."""

    def __init__(self, scorers: ScorerSet):
        self.scorers = scorers
        self._groups = 0
        self._done = asyncio.Event()
        self._done.set()

    def __enter__(self) -> ScorerSet:
        self._groups += 1
        self._done.clear()
        return self.scorers

    def __exit__(self, *_: object) -> None:
        self._groups -= 1
        if not self._groups:
            self._done.set()

    async def close_when_done(self) -> None:
        try:
            await self._done.wait()
        finally:  # when the server ends, this is cancelled and closes them at once
            await self.scorers.close()
        log.info("the last group of configuration %s is done, and its scorers are closed", _short(self.scorers))


async def loaded_and_tested(
    config: ServerConfig,
    sample: Group | None,
    example: Group | None = None,
    make: Callable[[ServerConfig], ScorerSet] = ScorerSet,
) -> ScorerSet:
    """Loads the scorers of a configuration, and tests that they score the sample.

    Without a sample, each scorer has to score one of several groups: the `example`, which is a group that was scored
    before, and two made-up groups.

    Raises ConfigError or ScorerLoadError; then everything that was started has ended.
    """
    scorers = make(config)
    try:
        async with asyncio.timeout(_LOAD_TIMEOUT_S):
            await scorers.load()
    except TimeoutError as error:
        raise ScorerLoadError(f"the scorers were not loaded within {_LOAD_TIMEOUT_S:g} s") from error
    try:
        known = [example] if example is not None else []
        samples = [sample] if sample is not None else [*known, *made_up(scorers.info.scorers, scorers.scorers)]
        if failures := await failures_on(scorers, samples):
            hint = "" if sample else "; if these samples do not fit your scorers, start the server with --sample FILE"
            raise ScorerLoadError("\n  ".join([f"a sample was scored, and failed{hint}:", *failures]))
    except BaseException:
        await scorers.close()
        raise
    return scorers


def warn_of_ignored_changes(old: ServerConfig, new: ServerConfig) -> None:
    """Warns of fields in which two configurations differ but which a reload does not change."""
    fields = [name for name in ServerConfig.model_fields if name not in _RELOADED]
    if waiting := [name for name in fields if getattr(old, name) != getattr(new, name)]:
        log.warning("%s: the changes take effect when the server is started again", ", ".join(waiting))


class ReloadRequests:
    """Requests to reload, which may come at any time and are answered one after another.

    All requests that come during a reload are answered by one more reload, which reads the file as it is by then.
    """

    def __init__(self, reload: Callable[[], Awaitable[None]]):
        self._reload = reload
        self._asked = asyncio.Event()

    def ask(self) -> None:
        self._asked.set()

    @contextlib.asynccontextmanager
    async def answered(self) -> AsyncIterator[None]:
        """Answers requests while the block lasts, including those that were made before."""
        task = asyncio.create_task(self._answer())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait({task})

    async def _answer(self) -> None:
        while True:
            await self._asked.wait()
            self._asked.clear()
            try:
                await self._reload()
            except Exception:
                log.exception("reloading failed; the configuration of before serves on")


def _short(scorers: ScorerSet) -> str:
    return scorers.info.config_digest[:12]
