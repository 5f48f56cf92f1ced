"""The life of a server: startup, serve, reload, drain, shutdown; signals, health, and ending with a parent.

Owns the process's event loop, the grpc.aio server and the order in which things begin and end. What becomes of a call
is `service`'s, what becomes of a group `scoring`'s, what a reload is worth `reload`'s.

    exit_code = run(config, announce=print)

    server = RewardServer(config)
    await server.startup()        loads scorers, binds, is healthy
    await server.serve()          until ask_to_stop()
        await server.reload(other_config)
    finished = await server.drain()
    await server.shutdown()
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import grpc.aio

from reward_server.addresses import parse_address
from reward_server.config import ServerConfig
from reward_server.errors import RewardServerError
from reward_server.execution.batcher import Batcher
from reward_server.execution.tasks import CUT_SHORT, until
from reward_server.execution.threads import in_thread
from reward_server.observability.metrics import CollectorRegistry, Metrics, MetricsPage, Source
from reward_server.observability.records import Records
from reward_server.processes.lifetime import ended, has_terminal, killed_after
from reward_server.serving.admission import Admission
from reward_server.serving.quotas import Quotas
from reward_server.serving.reload import CurrentScorers, Requests, loaded_and_tested, warn_of_what_waits
from reward_server.serving.scorer_set import ScorerSet
from reward_server.serving.security import Security
from reward_server.serving.service import SERVICE_NAME, RewardService
from reward_server.types import Group, ServerInfo

try:
    from grpc_health.v1 import health, health_pb2, health_pb2_grpc
    from grpc_reflection.v1alpha import reflection
except ImportError:  # without the [server] extra
    health = reflection = None

try:
    import uvloop
except ImportError:
    uvloop = None

log = logging.getLogger("reward_server")

# gRPC reads a request before its token can be looked at: this bounds what a stranger can have the server hold. It is
# well above limits.max_group_bytes, which is ours to enforce, and which a reload may raise.
_LEAST_MESSAGE_BYTES = 256 << 20
_MOST_MESSAGE_BYTES = 2**31 - 1

_OPTIONS = (
    ("grpc.max_send_message_length", -1),
    # By default calls that Python has not taken yet are reset, as CANCELLED, some at random from 1,000 on and all from
    # 3,000, or after 30 s. A herd of ranks is larger, and it is `admission` that pushes back.
    ("grpc.server.max_pending_requests", 1 << 20),
    ("grpc.server.max_pending_requests_hard_limit", 1 << 20),
    ("grpc.server_max_unrequested_time_in_server", 3600),
    # Clients ping every 10 s or less often to find a dead connection; by default the second such ping is cut off.
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # An old connection ends with its last call: any grace that is shorter would cut the longest.
    ("grpc.max_connection_age_grace_ms", 2**31 - 1),
    # A caller that vanished without a word (its machine or network did) is noticed within 30 s, and its calls end. It
    # is the ping's own time-out that ends the connection (grpcio 1.85): 60 s by default, whatever keepalive's says.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),
)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A configuration that is loaded beside the one that serves."""

    config: ServerConfig
    scorers: ScorerSet


class RewardServer:
    """One server, of one configuration at a time."""

    def __init__(self, config: ServerConfig, sample: Group | None = None, shares_ports: bool = False):
        """`sample` is what another configuration is tested with before it takes over; None for a made-up one. With
        `shares_ports` other processes may listen on the same ones.

        Raises ConfigError for credentials that cannot be used and addresses that are none or not safe.
        """
        self._config = config
        self._sample = sample
        self._shares_ports = shares_ports
        self._addresses = [parse_address(text) for text in config.listen]
        self._security = Security(config)
        self._security.refuse_exposed(self._addresses)
        self._current = CurrentScorers(ScorerSet(config))
        self._admission = Admission(config.limits.max_queued_completions, config.limits.max_queued_bytes)
        self.metrics = Metrics()
        self._page = page_of(config, self._security, self.metrics.registry())
        self._records: Records | None = None
        self.metrics_url: str | None = None
        """Where Prometheus reads, with the real port. None before startup, and without a page."""
        self._bound: list[tuple[Any, str]] = []
        self._health: Any = None
        self._grpc: grpc.aio.Server | None = None
        self._service: RewardService | None = None
        self._asked = asyncio.Event()
        self._at_once = asyncio.Event()

    @property
    def endpoints(self) -> list[str]:
        """Where it listens, with the real ports. Empty before startup."""
        return [endpoint for _, endpoint in self._bound]

    @property
    def info(self) -> ServerInfo:
        return self._current.info

    @property
    def batchers(self) -> dict[str, Batcher]:
        """Those of the scorers that batch, by name; their `stats` are counters."""
        return self._current.scorers.batchers

    def ask_to_stop(self, at_once: bool = False) -> None:
        """Ends `serve`; asked again, or `at_once`, ends `drain` too."""
        if at_once or self._asked.is_set():
            self._at_once.set()
        self._asked.set()

    async def startup(self) -> bool:
        """Loads the scorers, binds the addresses and takes calls. False if it was asked to stop before it was ready.

        Raises ConfigError or ScorerLoadError; then everything that was begun has ended.
        """
        try:
            for address in self._addresses:
                address.check()  # a model's loading takes minutes, and a taken port is known now
            if self._page is not None:
                self.metrics_url = self._page.open()
            if await until(self._asked, self.load()) is CUT_SHORT:
                return False
            await self.listen()
        except BaseException:
            await self.shutdown()
            raise
        return True

    async def load(self) -> None:
        """The first half of startup. Raises ConfigError or ScorerLoadError."""
        if self._config.records is not None:
            self._records = Records(self._config.records, self.metrics.recorded)
        await self._current.scorers.load()

    async def listen(self) -> None:
        """The second half. Raises ConfigError."""
        age_ms = round(1000 * self._config.max_connection_age_s)
        # By default two servers that are started on one port silently share its traffic.
        shares = ("grpc.so_reuseport", int(self._shares_ports))
        quotas = Quotas(self._config.quotas)
        self._current.scorers.observe(self.metrics)
        self.metrics.follow(self._counters)  # now that they are loaded: a page is made in another thread
        self._service = RewardService(
            self._current, self._security, self._admission, self.metrics, quotas, self._records
        )
        message_bytes = min(max(2 * self._config.limits.max_group_bytes, _LEAST_MESSAGE_BYTES), _MOST_MESSAGE_BYTES)
        largest = ("grpc.max_receive_message_length", message_bytes)
        self._grpc = grpc.aio.server(options=(*_OPTIONS, shares, largest, ("grpc.max_connection_age_ms", age_ms)))
        self._service.add_to(self._grpc)
        await self._add_standard_services(self._grpc)
        for address in self._addresses:
            self._bound.append((address, address.bind(self._grpc, self._security.tls)))
        await self._grpc.start()

    async def serve(self) -> None:
        """Returns when the server is asked to stop."""
        await self._asked.wait()

    async def reload(self, config: ServerConfig) -> None:
        """Has another configuration take over, or raises what `prepare` does and serves on as before."""
        prepared = await self.prepare(config)
        warn_of_what_waits(self._config, config)
        self.switch(prepared)

    async def prepare(self, config: ServerConfig) -> Prepared:
        """Loads another configuration beside the one that serves, and tests it on a sample.

        Raises ConfigError or ScorerLoadError; then everything that was begun has ended.
        """
        Security(config)  # raises for files that the next start could not use
        return Prepared(config, await loaded_and_tested(config, self._sample, self._current.example))

    def switch(self, prepared: Prepared) -> None:
        """Has groups scored by what was prepared, each that comes from now on. Those in flight finish on the old."""
        limits = prepared.config.limits
        self._admission.resize(limits.max_queued_completions, limits.max_queued_bytes)
        prepared.scorers.observe(self.metrics)
        self._current.switch(prepared.scorers)
        self._config = prepared.config

    async def drain(self) -> bool:
        """Refuses new calls and lets those in flight finish within the grace. Returns whether all of them did."""
        assert self._service is not None
        self._service.drain()
        if self._health is not None:
            await self._health.enter_graceful_shutdown()
        log.info("draining: %d calls in flight, at most %g s", self._service.calls, self._config.drain_grace_s)
        finished = False
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._config.drain_grace_s):
                finished = await until(self._at_once, self._service.idle()) is not CUT_SHORT
        if not finished and self._service.calls:
            log.error("stopping with %d calls in flight: they are answered UNAVAILABLE", self._service.calls)
            await self._service.cut()
            return False
        return True

    async def shutdown(self) -> None:
        """Closes the ports, ends the workers, removes socket files. May follow on any state."""
        if self._grpc is not None:
            await self._grpc.stop(_LAST_WORDS_S if self._service is not None and self._service.calls else None)
        await self._current.close()
        for address, _ in self._bound:
            address.release()
        self._bound.clear()
        if self._records is not None:
            await asyncio.to_thread(self._records.close)
        if self._page is not None:
            await asyncio.to_thread(self._page.close)  # it waits for half a second

    def _counters(self) -> Iterable[Source]:
        return self._current.scorers.counters()

    async def _add_standard_services(self, server: grpc.aio.Server) -> None:
        if health is None:
            log.warning("no health and reflection services: install grpo-plugin[server] for them")
            return
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        await self._health.set(SERVICE_NAME, health_pb2.HealthCheckResponse.SERVING)
        if self._config.reflection:
            reflection.enable_server_reflection((SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME), server)


def page_of(config: ServerConfig, security: Security, registry: CollectorRegistry) -> MetricsPage | None:
    """The page that the configuration asks for, not yet open. Raises ConfigError for an address that is not safe."""
    if config.metrics is None:
        return None
    page = MetricsPage(config.metrics, registry)
    security.refuse_exposed_page(page.address, config.metrics.allow_insecure)
    return page


# Time to end its workers by itself once its parent is gone.
_ORPHAN_GRACE_S = 3.0

# A file, and the modules of the user's own scorer classes that it names.
_READ_TIMEOUT_S = 120.0

# Time for the UNAVAILABLE of calls that were cut to reach their callers.
_LAST_WORDS_S = 0.5


class Life(Protocol):
    """What is run: one server process, or several under a supervisor."""

    metrics_url: str | None

    @property
    def endpoints(self) -> list[str]: ...
    @property
    def info(self) -> ServerInfo: ...
    def ask_to_stop(self, at_once: bool = False) -> None: ...
    async def startup(self) -> bool: ...
    async def serve(self) -> None: ...
    async def reload(self, config: ServerConfig) -> None: ...
    async def drain(self) -> bool: ...
    async def shutdown(self) -> None: ...


Reread = Callable[[], ServerConfig]


def run(
    make: Callable[[], Life],
    announce: Callable[[Life], None],
    parent_pid: int | None = None,
    reread: Reread | None = None,
) -> int:
    """A server's whole life, in this thread. Returns the exit code: 0 if no call was cut off.

    `announce` is called once it takes calls. SIGTERM and SIGINT drain it, a second one stops it at once, as does the
    end of the parent. SIGHUP has it load what `reread` then returns, test it on the sample and switch to it, or stay
    with what it has. Raises ConfigError or ScorerLoadError if it cannot start.
    """
    with event_loop() as runner:
        return runner.run(_live(make(), announce, parent_pid, reread))


def event_loop() -> asyncio.Runner:
    """The fastest that there is."""
    return asyncio.Runner(loop_factory=uvloop.new_event_loop if uvloop else None)


async def _live(server: Life, announce: Callable[[Life], None], parent_pid: int | None, reread: Reread | None) -> int:
    reloads = Requests(lambda: _reload(server, reread))
    had_terminal = has_terminal()

    def hang_up() -> None:
        """SIGHUP tells a server without a terminal to reload, and one with a terminal also that it has closed."""
        if had_terminal and not has_terminal():
            server.ask_to_stop()
        else:
            reloads.ask()

    async with _signals(server.ask_to_stop, hang_up), _stopped_with_parent(server, parent_pid):
        if not await server.startup():
            log.error("asked to stop before the scorers were loaded")
            await server.shutdown()
            return 1
        try:
            announce(server)
            async with reloads.answered():
                await server.serve()
            finished = await server.drain()
        finally:
            await server.shutdown()
    return 0 if finished else 1


async def _reload(server: Life, reread: Reread | None) -> None:
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
async def _signals(stop: Callable[[], None], reload: Callable[[], None]) -> AsyncIterator[None]:
    loop = asyncio.get_running_loop()
    handlers = {signal.SIGTERM: stop, signal.SIGINT: stop, signal.SIGHUP: reload}
    for name, handler in handlers.items():
        loop.add_signal_handler(name, handler)
    try:
        yield
    finally:
        for name in handlers:
            loop.remove_signal_handler(name)


@contextlib.asynccontextmanager
async def _stopped_with_parent(server: Life, parent_pid: int | None) -> AsyncIterator[None]:
    if parent_pid is None:
        yield
        return
    killed_after(parent_pid, _ORPHAN_GRACE_S)  # a scorer that blocks the event loop would keep the next line from it
    task = asyncio.create_task(ended(parent_pid))
    task.add_done_callback(lambda task: None if task.cancelled() else server.ask_to_stop(at_once=True))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})
