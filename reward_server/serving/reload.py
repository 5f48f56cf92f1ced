"""A configuration that is loaded while another serves: beside it, tested on a sample, and switched to between groups.

Owns which scorers are the current ones and how long those before them live. Where a new configuration comes from and
who asks for it is `server`'s; knows nothing of gRPC, signals or processes.

    current = CurrentScorers(scorers)
    with current.held() as scorers: ...         one set for one group, whatever is switched to meanwhile
    new = await loaded_and_tested(config, sample)
    current.switch(new)                         for every group from now on; the old set closes when its last is done
    await current.close()
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

from reward_server.config import ServerConfig
from reward_server.errors import ScorerLoadError
from reward_server.serving.scorer_set import ScorerSet
from reward_server.serving.selftest import failures_on, made_up
from reward_server.types import Group, ServerInfo

log = logging.getLogger("reward_server")

# A large model takes minutes to load; what takes longer hangs, and would hold up every reload after it.
_LOAD_TIMEOUT_S = 900.0

# What a reload takes over. The rest belongs to the sockets and to processes that a switch between groups leaves alone.
_RELOADED = frozenset({"scorers", "workers", "worker_memory_bytes", "cache", "limits", "drain_grace_s"})


class CurrentScorers:
    """The set that scores new groups, and those before it that still have groups in flight."""

    def __init__(self, scorers: ScorerSet):
        self._current = _Held(scorers)
        self.example: Group | None = None
        """The last group that was scored without a failure: what the next configuration has to score too."""
        self._retiring: set[asyncio.Task[None]] = set()

    @property
    def scorers(self) -> ScorerSet:
        return self._current.scorers

    @property
    def info(self) -> ServerInfo:
        return self.scorers.info

    @contextlib.contextmanager
    def held(self) -> Iterator[ScorerSet]:
        """The current set, which stays open while the block lasts."""
        with self._current.held() as scorers:
            yield scorers

    def switch(self, scorers: ScorerSet) -> None:
        """Has every group that comes from now on scored by a loaded set."""
        old, self._current = self._current, _Held(scorers)
        log.info("configuration %s serves, in place of %s", _short(scorers), _short(old.scorers))
        task = asyncio.create_task(old.close_when_done())
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    async def close(self) -> None:
        """Closes all sets, those with groups in flight too."""
        for task in self._retiring:
            task.cancel()
        await asyncio.gather(*self._retiring, return_exceptions=True)
        await self._current.scorers.close()


class _Held:
    """A set, and how many groups it is scoring."""

    def __init__(self, scorers: ScorerSet):
        self.scorers = scorers
        self._groups = 0
        self._done = asyncio.Event()
        self._done.set()

    @contextlib.contextmanager
    def held(self) -> Iterator[ScorerSet]:
        self._groups += 1
        self._done.clear()
        try:
            yield self.scorers
        finally:
            self._groups -= 1
            if not self._groups:
                self._done.set()

    async def close_when_done(self) -> None:
        try:
            await self._done.wait()
        finally:  # at once where the server ends
            await self.scorers.close()
        log.info("the last group of configuration %s is done: its scorers are closed", _short(self.scorers))


async def loaded_and_tested(config: ServerConfig, sample: Group | None, example: Group | None = None) -> ScorerSet:
    """The scorers of a configuration, loaded and able to score the sample. With none given, each has to score one of
    a group that was scored before, if there is an `example`, and the made-up ones.

    Raises ConfigError or ScorerLoadError; then everything that was begun has ended.
    """
    scorers = ScorerSet(config)
    try:
        async with asyncio.timeout(_LOAD_TIMEOUT_S):
            await scorers.load()
    except TimeoutError as error:
        raise ScorerLoadError(f"the scorers were not loaded within {_LOAD_TIMEOUT_S:g} s") from error
    try:
        known = [example] if example is not None else []
        samples = [sample] if sample is not None else [*known, *made_up(scorers.info.scorers, scorers.scorers)]
        if failures := await failures_on(scorers, samples):
            hint = "" if sample else "; if that is the samples' fault, start the server with --sample FILE"
            raise ScorerLoadError("\n  ".join([f"a sample was scored, and failed{hint}:", *failures]))
    except BaseException:
        await scorers.close()
        raise
    return scorers


def warn_of_what_waits(old: ServerConfig, new: ServerConfig) -> None:
    """Logs the fields in which two configurations differ and that a reload does not take over."""
    fields = [name for name in ServerConfig.model_fields if name not in _RELOADED]
    if waiting := [name for name in fields if getattr(old, name) != getattr(new, name)]:
        log.warning("%s: what is new there takes effect when the server is started again", ", ".join(waiting))


class Requests:
    """Asks to reload, which signals may make at any time, answered one after another.

    However many come during one, one more follows it: what they were about is in the file by then.
    """

    def __init__(self, reload: Callable[[], Awaitable[None]]):
        self._reload = reload
        self._asked = asyncio.Event()

    def ask(self) -> None:
        self._asked.set()

    @contextlib.asynccontextmanager
    async def answered(self) -> AsyncIterator[None]:
        """Answers what is asked, what was asked before included, while the block lasts."""
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
                log.exception("reloading failed, and what served before serves on")


def _short(scorers: ScorerSet) -> str:
    return scorers.info.config_digest[:12]
