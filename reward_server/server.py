"""The life of a server: startup, serve, drain, shutdown; signals, health, and ending with a parent.

Owns the process's event loop, the grpc.aio server and the order in which things begin and end. What becomes of a call
is `service`'s, what becomes of a group `scoring`'s.

    exit_code = run(config, announce=print)

    server = RewardServer(config)
    await server.startup()        loads scorers, binds, is healthy
    await server.serve()          until ask_to_stop()
    finished = await server.drain()
    await server.shutdown()
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

import grpc.aio

from reward_server.addresses import parse_address
from reward_server.admission import Admission
from reward_server.batcher import Batcher
from reward_server.config import ServerConfig
from reward_server.metrics import CollectorRegistry, Metrics, MetricsPage
from reward_server.processes import ended, killed_after
from reward_server.quotas import Quotas
from reward_server.records import Records
from reward_server.scoring import ScorerSet
from reward_server.security import Security
from reward_server.service import SERVICE_NAME, RewardService
from reward_server.types import ServerInfo

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

T = TypeVar("T")

_OPTIONS = (
    # Two servers started on one port would otherwise silently share its traffic.
    ("grpc.so_reuseport", 0),
    # limits.max_group_bytes is ours to enforce: the transport's own refusal has the code of a server that is busy.
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # By default calls that Python has not taken yet are reset, as CANCELLED, some at random from 1,000 on and all from
    # 3,000, or after 30 s. A herd of ranks is larger, and it is `admission` that pushes back.
    ("grpc.server.max_pending_requests", 1 << 20),
    ("grpc.server.max_pending_requests_hard_limit", 1 << 20),
    ("grpc.server_max_unrequested_time_in_server", 3600),
    # Clients ping every 10 s or less often to find a dead connection; by default the second such ping is cut off.
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # A caller that vanished without a word (its machine or network did) is noticed within 30 s, and its calls end. It
    # is the ping's own time-out that ends the connection (grpcio 1.85): 60 s by default, whatever keepalive's says.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),
)


class RewardServer:
    """One server of one configuration."""

    def __init__(self, config: ServerConfig):
        """Raises ConfigError for credentials that cannot be used and addresses that are none or not safe."""
        self._config = config
        self._addresses = [parse_address(text) for text in config.listen]
        self._security = Security(config)
        self._security.refuse_exposed(self._addresses)
        self.metrics = Metrics()
        self._page = page_of(config, self._security, self.metrics.registry())
        self._records: Records | None = None
        self._scorers = ScorerSet(config)
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
        return self._scorers.info

    @property
    def batchers(self) -> dict[str, Batcher]:
        """Those of the scorers that batch, by name; their `stats` are counters."""
        return self._scorers.batchers

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
            if self._config.records is not None:
                self._records = Records(self._config.records, self.metrics.recorded)
            if await _until(self._asked, self._scorers.load()) is _CUT_SHORT:
                return False
            await self._listen()
        except BaseException:
            await self.shutdown()
            raise
        return True

    async def serve(self) -> None:
        """Returns when the server is asked to stop."""
        await self._asked.wait()

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
                finished = await _until(self._at_once, self._service.idle()) is not _CUT_SHORT
        if not finished and self._service.calls:
            log.error("stopping with %d calls in flight: they are answered UNAVAILABLE", self._service.calls)
            await self._service.cut()
            return False
        return True

    async def shutdown(self) -> None:
        """Closes the ports, ends the workers, removes socket files. May follow on any state."""
        if self._grpc is not None:
            await self._grpc.stop(_LAST_WORDS_S if self._service is not None and self._service.calls else None)
        await self._scorers.close()
        for address, _ in self._bound:
            address.release()
        self._bound.clear()
        if self._records is not None:
            await asyncio.to_thread(self._records.close)
        if self._page is not None:
            await asyncio.to_thread(self._page.close)  # it waits for half a second

    async def _listen(self) -> None:
        limits = self._config.limits
        admission = Admission(limits.max_queued_completions, limits.max_queued_bytes)
        quotas = Quotas(self._config.quotas)
        self.metrics.follow(self._scorers.counters)  # now that they are loaded: a page is made in another thread
        self._service = RewardService(self._scorers, self._security, admission, self.metrics, quotas, self._records)
        self._grpc = grpc.aio.server(options=_OPTIONS)
        self._service.add_to(self._grpc)
        await self._add_standard_services(self._grpc)
        for address in self._addresses:
            self._bound.append((address, address.bind(self._grpc, self._security.tls)))
        await self._grpc.start()

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

# Time for the UNAVAILABLE of calls that were cut to reach their callers.
_LAST_WORDS_S = 0.5


def run(config: ServerConfig, announce: Callable[[RewardServer], None], parent_pid: int | None = None) -> int:
    """A server's whole life, in this thread. Returns the exit code: 0 if no call was cut off.

    `announce` is called once it takes calls. SIGTERM and SIGINT drain it, a second one stops it at once, as does the
    end of the parent. Raises ConfigError or ScorerLoadError if it cannot start.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop if uvloop else None) as runner:
        return runner.run(_live(config, announce, parent_pid))


async def _live(config: ServerConfig, announce: Callable[[RewardServer], None], parent_pid: int | None) -> int:
    server = RewardServer(config)
    async with _stopped_by_signals(server), _stopped_with_parent(server, parent_pid):
        if not await server.startup():
            log.error("asked to stop before the scorers were loaded")
            await server.shutdown()
            return 1
        try:
            announce(server)
            await server.serve()
            finished = await server.drain()
        finally:
            await server.shutdown()
    return 0 if finished else 1


@contextlib.asynccontextmanager
async def _stopped_by_signals(server: RewardServer) -> AsyncIterator[None]:
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, server.ask_to_stop)
    try:
        yield
    finally:
        for name in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(name)


@contextlib.asynccontextmanager
async def _stopped_with_parent(server: RewardServer, parent_pid: int | None) -> AsyncIterator[None]:
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


_CUT_SHORT = object()


async def _until(event: asyncio.Event, coroutine: Coroutine[Any, Any, T]) -> T | object:
    """What the coroutine returns, or _CUT_SHORT if the event comes first; then it is cancelled."""
    work, cut = asyncio.create_task(coroutine), asyncio.create_task(event.wait())
    try:
        await asyncio.wait({work, cut}, return_when=asyncio.FIRST_COMPLETED)
        return work.result() if work.done() else _CUT_SHORT
    finally:
        for task in (work, cut):
            task.cancel()
        await asyncio.wait({work, cut})
