"""The life of a server in its process: startup, serve, reload, drain, shutdown; the signals and the parent that end it.

Owns the event loop, the signals and the order in which things begin and end. What starts and ends is a `ManagedServer`:
`server.RewardServer` in one process, or `supervisor.Supervisor` over several.

    exit_code = run(lambda: RewardServer(config), announce=print)
"""

from __future__ import annotations

import abc
import asyncio
import contextlib
import gc
import logging
import signal
from collections.abc import AsyncIterator, Callable

from reward_server.config import ServerConfig
from reward_server.errors import RewardServerError
from reward_server.execution.threads import in_thread
from reward_server.observability.metrics import CollectorRegistry, MetricsPage
from reward_server.processes.lifetime import ended, has_terminal, kill_after_end_of
from reward_server.processes.memory import keep_freed_memory
from reward_server.serving.reload import ReloadRequests
from reward_server.serving.security import Security
from reward_server.types import Group, ServerInfo

try:
    import uvloop
except ImportError:
    uvloop = None

log = logging.getLogger("reward_server")

# Once its parent has ended, a server has this much time to end its workers; then it is killed.
_ORPHAN_GRACE_S = 3.0

# Reading a configuration imports the modules of the user's own scorer classes, which may take this long.
_READ_TIMEOUT_S = 120.0

_OBJECTS_A_COLLECTION = 10_000


class ManagedServer(abc.ABC):
    """What a life needs of a server. `startup`, `serve`, `drain` and `shutdown` are called in this order."""

    def __init__(self, config: ServerConfig, sample: Group | None):
        """Raises ConfigError for credentials that cannot be used."""
        self._config = config
        self._sample = sample
        self._security = Security(config)
        self._page: MetricsPage | None = None
        self.metrics_url: str | None = None
        """The URL that Prometheus reads, with the real port. None before startup, and without a metrics page."""
        self._stop_asked = asyncio.Event()
        self._stop_at_once = asyncio.Event()

    @property
    @abc.abstractmethod
    def endpoints(self) -> list[str]:
        """The addresses that it listens on, with the real ports. Empty before startup."""

    @property
    @abc.abstractmethod
    def info(self) -> ServerInfo:
        """What clients are told about the server. Raises before startup."""

    @abc.abstractmethod
    async def startup(self) -> bool:
        """Loads the scorers and takes calls. Returns False if it was asked to stop before it was ready.

        Raises ConfigError or ScorerLoadError; then everything that was started has ended.
        """

    @abc.abstractmethod
    async def reload(self, config: ServerConfig) -> None:
        """Replaces the configuration. Raises ConfigError or ScorerLoadError, and then serves as before."""

    @abc.abstractmethod
    async def drain(self) -> bool:
        """Refuses new calls and lets those in flight finish within the grace. Returns whether all of them did."""

    @abc.abstractmethod
    async def shutdown(self) -> None:
        """Closes the ports and ends everything that was started. It may follow any state."""

    async def serve(self) -> None:
        """Returns when the server is asked to stop."""
        await self._stop_asked.wait()

    def ask_to_stop(self, at_once: bool = False) -> None:
        """Ends `serve`. A second call, or `at_once`, ends `drain` too."""
        if at_once or self._stop_asked.is_set():
            self._stop_at_once.set()
        self._stop_asked.set()

    def _make_page(self, registry: CollectorRegistry) -> None:
        """Makes the metrics page of the configuration, closed as yet. Raises ConfigError for an unsafe address."""
        if self._config.metrics is None:
            return
        page = MetricsPage(self._config.metrics, registry)
        self._security.refuse_exposed_page(page.address, self._config.metrics.allow_insecure)
        self._page = page

    def _open_page(self) -> None:
        if self._page is not None:
            self.metrics_url = self._page.open()

    async def _close_page(self) -> None:
        if self._page is not None:
            await asyncio.to_thread(self._page.close)  # it waits for half a second


ReadConfig = Callable[[], ServerConfig]


def run(
    make: Callable[[], ManagedServer],
    announce: Callable[[ManagedServer], None],
    parent_pid: int | None = None,
    reread: ReadConfig | None = None,
) -> int:
    """Runs a server's whole life in this thread. Returns the exit code: 0 if no call was cut off.

    `announce` is called once the server takes calls. SIGTERM and SIGINT drain the server; a second one stops it at
    once, and so does the end of the parent. On SIGHUP the server loads the configuration that `reread` returns, tests
    it on a sample and switches to it; if that fails, it keeps the configuration that it has.

    Raises ConfigError or ScorerLoadError if the server cannot start.
    """
    with event_loop() as runner:
        return runner.run(_live(make(), announce, parent_pid, reread))


def event_loop() -> asyncio.Runner:
    """A runner of the fastest event loop that is installed, in a process that serves."""
    keep_freed_memory()
    return asyncio.Runner(loop_factory=uvloop.new_event_loop if uvloop else None)


async def _live(
    server: ManagedServer,
    announce: Callable[[ManagedServer], None],
    parent_pid: int | None,
    reread: ReadConfig | None,
) -> int:
    reloads = ReloadRequests(lambda: _reload(server, reread))
    async with _signals(server.ask_to_stop, _on_hangup(server, reloads)), _stopped_with_parent(server, parent_pid):
        if not await server.startup():
            log.warning("the server was asked to stop before its scorers were loaded")
            await server.shutdown()
            return 1
        _collect_seldom()
        try:
            announce(server)
            async with reloads.answered():
                await server.serve()
            finished = await server.drain()
        finally:
            await server.shutdown()
    return 0 if finished else 1


def _collect_seldom() -> None:
    """Lets Python's garbage collector come less often.

    A group is about a hundred objects, and in no cycles. With Python's threshold of 700 objects the collector walks a
    group several times before it is gone; ten thousand objects are a few megabytes.
    """
    gc.set_threshold(_OBJECTS_A_COLLECTION, *gc.get_threshold()[1:])


def _on_hangup(server: ManagedServer, reloads: ReloadRequests) -> Callable[[], None]:
    """SIGHUP asks for a reload, unless it says that the terminal in which the server was started has closed."""
    had_terminal = has_terminal()

    def handle() -> None:
        if had_terminal and not has_terminal():
            server.ask_to_stop()
        else:
            reloads.ask()

    return handle


async def _reload(server: ManagedServer, reread: ReadConfig | None) -> None:
    digest = server.info.config_digest[:12]
    if reread is None:
        log.error("the configuration came by standard input and cannot be read again: %s serves on", digest)
        return
    log.info("loading the configuration again; %s serves meanwhile", digest)
    try:
        async with asyncio.timeout(_READ_TIMEOUT_S):
            config = await in_thread(reread)
        await server.reload(config)
    except TimeoutError:
        log.error("the configuration could not be read within %g s, and %s serves on", _READ_TIMEOUT_S, digest)
    except RewardServerError as error:
        log.error("the new configuration is refused, and %s serves on: %s", digest, error)


@contextlib.asynccontextmanager
async def _signals(stop: Callable[[], None], hang_up: Callable[[], None]) -> AsyncIterator[None]:
    loop = asyncio.get_running_loop()
    handlers = {signal.SIGTERM: stop, signal.SIGINT: stop, signal.SIGHUP: hang_up}
    for name, handler in handlers.items():
        loop.add_signal_handler(name, handler)
    try:
        yield
    finally:
        for name in handlers:
            loop.remove_signal_handler(name)


@contextlib.asynccontextmanager
async def _stopped_with_parent(server: ManagedServer, parent_pid: int | None) -> AsyncIterator[None]:
    if parent_pid is None:
        yield
        return
    kill_after_end_of(
        parent_pid, _ORPHAN_GRACE_S
    )  # a scorer that blocks the event loop would also block the next lines
    task = asyncio.create_task(ended(parent_pid))
    task.add_done_callback(lambda task: None if task.cancelled() else server.ask_to_stop(at_once=True))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})
