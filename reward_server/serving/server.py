"""One server process: it loads the scorers, binds the addresses, serves, takes over another configuration, drains.

Owns the grpc.aio server, health and reflection. `service` handles a call, `scorer_set` a group, `reload` a change of
the configuration; `lifecycle` calls the methods below in their order, and on signals.

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
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import grpc.aio

from reward_server.addresses import Address, parse_address
from reward_server.config import ServerConfig
from reward_server.execution.batcher import Batcher
from reward_server.execution.tasks import CUT_SHORT, until
from reward_server.observability.metrics import Metrics, Source
from reward_server.observability.records import Records
from reward_server.serving.admission import Admission
from reward_server.serving.lifecycle import ManagedServer
from reward_server.serving.peers import Peers, Places
from reward_server.serving.quotas import Quotas
from reward_server.serving.reload import CurrentScorers, loaded_and_tested, warn_of_ignored_changes
from reward_server.serving.scorer_set import ScorerSet
from reward_server.serving.security import Security
from reward_server.serving.service import SERVICE_NAME, RewardService
from reward_server.types import Group, ServerInfo

try:
    from grpc_health.v1 import health, health_pb2, health_pb2_grpc
    from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc
except ImportError:  # without the [server] extra
    health = reflection = None

log = logging.getLogger("reward_server")

# gRPC reads a whole request before the server can look at its token, so this bounds the memory that a stranger can
# claim. It is well above limits.max_group_bytes, which the service enforces and which a reload may raise.
_LEAST_MESSAGE_BYTES = 256 << 20
_MOST_MESSAGE_BYTES = 2**31 - 1

OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_send_message_length", -1),
    # By default gRPC resets calls that Python has not taken yet, as CANCELLED: some at random from 1,000 on, all from
    # 3,000 on, and those that are older than 30 s. The ranks of a large run send more, and `admission` pushes back.
    ("grpc.server.max_pending_requests", 1 << 20),
    ("grpc.server.max_pending_requests_hard_limit", 1 << 20),
    ("grpc.server_max_unrequested_time_in_server", 3600),
    # Clients ping at most every 10 s to find a dead connection; by default gRPC cuts off the second such ping.
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # An old connection ends with its last call; any shorter grace would cut the longest calls.
    ("grpc.max_connection_age_grace_ms", 2**31 - 1),
    # The calls of a caller whose machine or network has vanished end within 30 s. The ping's own time-out ends the
    # connection (grpcio 1.85); its default is 60 s, whatever the time-out of keepalive says.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),
)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A configuration that is loaded beside the one that serves."""

    config: ServerConfig
    scorers: ScorerSet


# Calls that are cut get this much time to deliver their status UNAVAILABLE to their callers.
_STATUS_GRACE_S = 0.5


class RewardServer(ManagedServer):
    """One server process, of one configuration at a time."""

    def __init__(
        self,
        config: ServerConfig,
        sample: Group | None = None,
        places: Places | None = None,
        make_scorers: Callable[[ServerConfig], ScorerSet] = ScorerSet,
    ):
        """A reload tests the new configuration on `sample`, or on a made-up sample if that is None. With `places`,
        other processes listen on the same ports, and the completions of a group meet at one of them. `make_scorers`
        makes the scorers of each configuration.

        Raises ConfigError for credentials that cannot be used and for addresses that cannot be read or are not safe.
        """
        super().__init__(config, sample)
        self._places = places
        self._addresses = [parse_address(text) for text in config.listen]
        self._security.refuse_exposed(self._addresses)
        self._make_scorers = make_scorers
        self._current = CurrentScorers(make_scorers(config))
        self._admission = Admission(config.limits.max_queued_completions, config.limits.max_queued_bytes)
        self.metrics = Metrics()
        self._make_page(self.metrics.registry())
        self._records: Records | None = None
        self._bound: list[tuple[Address, str]] = []
        self._health: Any = None
        self._grpc: grpc.aio.Server | None = None
        self._service: RewardService | None = None

    @property
    def endpoints(self) -> list[str]:
        return [endpoint for _, endpoint in self._bound]

    @property
    def info(self) -> ServerInfo:
        return self._current.info

    @property
    def config(self) -> ServerConfig:
        """The configuration that serves."""
        return self._config

    @property
    def calls(self) -> int:
        """The number of calls in flight."""
        return 0 if self._service is None else self._service.calls

    @property
    def batchers(self) -> dict[str, Batcher]:
        """The batchers of the scorers that batch, by the scorer's name; their `stats` are counters."""
        return self._current.scorers.batchers

    async def startup(self) -> bool:
        try:
            for address in self._addresses:
                address.check()  # loading a model takes minutes, and a port that is taken is known now
            self._open_page()
            if await until(self._stop_asked, self.load()) is CUT_SHORT:
                return False
            await self.listen()
        except BaseException:
            await self.shutdown()
            raise
        return True

    async def load(self) -> None:
        """Does the first half of startup: loads the scorers. Raises ConfigError or ScorerLoadError."""
        if self._config.records is not None:
            self._records = Records(self._config.records, self.metrics.recorded)
        await self._current.scorers.load()

    async def listen(self) -> None:
        """Does the second half of startup: binds the addresses and takes calls. Raises ConfigError."""
        peers = None if self._places is None else Peers(self._places, SERVICE_NAME)
        service = self.open(peers)
        self._grpc = grpc.aio.server(options=self._grpc_options())
        service.add_to(self._grpc)
        await self._add_standard_services(self._grpc)
        for address in self._addresses:
            self._bound.append((address, address.bind(self._grpc, self._security.tls)))
        if peers is not None:
            peers.address.bind(self._grpc)
        await self._grpc.start()

    def open(self, peers: Peers | None = None) -> RewardService:
        """The service over the loaded scorers. `listen` puts it behind a port of its own."""
        self._current.scorers.observe(self.metrics)
        self.metrics.follow(self._counters)  # only now, since the page is made in another thread
        self._service = RewardService(
            self._current,
            self._security,
            self._admission,
            self.metrics,
            Quotas(self._config.quotas),
            self._config.limits,
            self._records,
            peers,
        )
        return self._service

    def _grpc_options(self) -> tuple[tuple[str, int], ...]:
        message_bytes = min(max(2 * self._config.limits.max_group_bytes, _LEAST_MESSAGE_BYTES), _MOST_MESSAGE_BYTES)
        return (
            *OPTIONS,
            # By default two servers that are started on one port silently share its traffic.
            ("grpc.so_reuseport", int(self._places is not None)),
            ("grpc.max_receive_message_length", message_bytes),
            ("grpc.max_connection_age_ms", round(1000 * self._config.max_connection_age_s)),
        )

    async def reload(self, config: ServerConfig) -> None:
        prepared = await self.prepare(config)
        warn_of_ignored_changes(self._config, config)
        self.switch(prepared)

    async def prepare(self, config: ServerConfig) -> Prepared:
        """Loads another configuration beside the current one and tests it on a sample.

        Raises ConfigError or ScorerLoadError; then everything that was started for it has ended.
        """
        Security(config)  # raises for files that the next start could not use
        scorers = await loaded_and_tested(config, self._sample, self._current.example, self._make_scorers)
        return Prepared(config, scorers)

    def switch(self, prepared: Prepared) -> None:
        """Scores every new group with the prepared configuration. Groups in flight finish on the old one."""
        limits = prepared.config.limits
        self._admission.resize(limits.max_queued_completions, limits.max_queued_bytes)
        if self._service is not None:
            self._service.samples.calls.resize(limits)
        prepared.scorers.observe(self.metrics)
        self._current.switch(prepared.scorers)
        self._config = prepared.config

    async def drain(self) -> bool:
        assert self._service is not None
        self._service.drain()
        if self._health is not None:
            await self._health.enter_graceful_shutdown()
        log.info("draining: %d calls in flight, at most %g s", self.calls, self._config.drain_grace_s)
        finished = False
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._config.drain_grace_s):
                finished = await until(self._stop_at_once, self._service.idle()) is not CUT_SHORT
        if finished or not self.calls:
            return True
        level = logging.INFO if self._stop_at_once.is_set() else logging.ERROR  # who asks for it needs no warning
        log.log(level, "stopping with %d calls in flight: they are answered UNAVAILABLE", self.calls)
        await self._service.cut()
        return False

    async def shutdown(self) -> None:
        if self._grpc is not None:
            await self._grpc.stop(_STATUS_GRACE_S if self.calls else None)
        if self._service is not None:
            await self._service.close()
        await self._current.close()
        for address, _ in self._bound:
            address.release()
        self._bound.clear()
        if self._records is not None:
            await asyncio.to_thread(self._records.close)
        await self._close_page()

    def _counters(self) -> Iterable[Source]:
        return (*self._current.scorers.counters(), ("admission", "", self._admission))

    async def _add_standard_services(self, server: grpc.aio.Server) -> None:
        if health is None:
            log.warning("no health and reflection services: install grpo-plugin[server] for them")
            return
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, _Unregistered(server))
        await self._health.set(SERVICE_NAME, health_pb2.HealthCheckResponse.SERVING)
        if self._config.reflection:
            names = (SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME)
            reflection_pb2_grpc.add_ServerReflectionServicer_to_server(
                reflection.aio.ReflectionServicer(names), _Unregistered(server)
            )


class _Unregistered:
    """A server that finds methods by their names alone. For each call, grpc.aio (1.85) waits anew on one future a
    registered method, which costs more than the look-up saves."""

    def __init__(self, server: grpc.aio.Server):
        self.add_generic_rpc_handlers = server.add_generic_rpc_handlers

    def add_registered_method_handlers(self, service: str, handlers: Any) -> None:
        """Does nothing."""
