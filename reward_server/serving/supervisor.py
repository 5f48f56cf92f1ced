"""Several server processes that act as one server: they share its addresses, and start, reload and drain together.

Owns the processes, the ports that they share, and the replacement of a process that dies. Each process is a whole
server with an event loop of its own (`server_process`), and the kernel distributes the callers' connections over them.
A reload is prepared in all processes before it takes over in any, so that it takes over everywhere or nowhere. Each
process has a place, which its replacement takes over: by it the processes find one another (`peers`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Coroutine
from typing import Any

from prometheus_client.multiprocess import mark_process_dead

from reward_server import errors
from reward_server.addresses import TCP, parse_address
from reward_server.config import ServerConfig
from reward_server.errors import ConfigError, ScorerLoadError
from reward_server.execution.tasks import CUT_SHORT, all_of, until
from reward_server.observability import logs
from reward_server.observability.metrics import shared_registry
from reward_server.processes.child import ChildEndedError
from reward_server.processes.lifetime import how_it_ended
from reward_server.processes.restarts import pause_s
from reward_server.serving.lifecycle import ManagedServer
from reward_server.serving.peers import Places
from reward_server.serving.reload import warn_of_ignored_changes
from reward_server.serving.server_handle import ServerHandle
from reward_server.types import Group, ServerInfo

log = logging.getLogger("reward_server")

METRICS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
"""The environment variable with the folder of each process's counters, which prometheus_client adds up on one page."""

# A process ends its calls after drain_grace_s; one that does not answer this much later is killed.
_UNRESPONSIVE_S = 10.0
_REFRESH_TIMEOUT_S = 1.0


class Supervisor(ManagedServer):
    """`config.processes` server processes of one configuration at a time."""

    def __init__(self, config: ServerConfig, sample: Group | None = None, log_format: str = "text"):
        """A reload tests the new configuration on `sample`, or on a made-up sample if that is None.

        Raises ConfigError for credentials that cannot be used, and for addresses that cannot be read, are not safe or
        cannot be shared.
        """
        super().__init__(config, sample)
        self._log_format = logs.FORMATS.index(log_format)
        self._processes = config.processes  # a reload does not change it
        self._addresses = _shareable_addresses(config)
        self._security.refuse_exposed(self._addresses)
        self._ports: list[socket.socket] = []
        self._endpoints: list[str] = []
        self._metrics_folder: str | None = None
        self._peers_folder: str | None = None
        self._info: ServerInfo | None = None
        self._servers: list[ServerHandle] = []
        self._keepers: set[asyncio.Task[None]] = set()  # one a process: it replaces the process when that ends
        self._changing = asyncio.Lock()

    @property
    def endpoints(self) -> list[str]:
        return self._endpoints

    @property
    def info(self) -> ServerInfo:
        assert self._info is not None, "startup() comes first"
        return self._info

    async def startup(self) -> bool:
        try:
            return await until(self._stop_asked, self._start()) is not CUT_SHORT
        except BaseException:
            await self.shutdown()
            raise

    async def reload(self, config: ServerConfig) -> None:
        async with self._changing:
            servers = list(self._servers)
            try:
                info = await self._prepare(servers, self._share_of(config))
            except BaseException:
                for server in servers:
                    server.tell("discard")
                raise
            warn_of_ignored_changes(self._config, config)
            self._config, self._info = config, info
            # A process that has ended meanwhile is replaced by one with the new configuration.
            await asyncio.gather(*(server.ask("switch") for server in servers), return_exceptions=True)

    async def drain(self) -> bool:
        await self._stop_replacing()
        log.info("draining %d server processes", len(self._servers))
        finished = asyncio.create_task(all_of(*(self._drain(server) for server in self._servers)))
        if await until(self._stop_at_once, asyncio.wait({finished})) is CUT_SHORT:
            for server in self._servers:
                server.tell("stop_at_once")
        return all(await finished)

    async def shutdown(self) -> None:
        await self._stop_replacing()
        await asyncio.gather(*(server.close() for server in self._servers), return_exceptions=True)
        self._servers.clear()
        for port in self._ports:
            port.close()
        await self._close_page()
        for folder in (self._metrics_folder, self._peers_folder):
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)

    # ----------------------------------------------------------------------------------------------- start and replace

    async def _start(self) -> None:
        self._metrics_folder = tempfile.mkdtemp(prefix="reward-metrics-")
        self._peers_folder = tempfile.mkdtemp(prefix="reward-peers-")  # only its owner may open a socket in it
        loop = asyncio.get_running_loop()
        self._make_page(shared_registry(self._metrics_folder, lambda: self._refresh_metrics(loop)))
        self._open_page()
        for address in self._addresses:
            ports, endpoint = address.reserve()
            self._ports += ports
            self._endpoints.append(endpoint)
        loaded = await all_of(*(self._load_server(place) for place in range(self._processes)))
        self._info = _same_info([info for _, info in loaded])
        await all_of(*(server.ask("listen") for server, _ in loaded))
        for place, (server, _) in enumerate(loaded):
            self._keep(server, place, [])

    async def _load_server(self, place: int) -> tuple[ServerHandle, ServerInfo]:
        server = await ServerHandle.start(
            "reward_server.serving.server_process",
            log.getEffectiveLevel(),
            self._log_format,
            env={METRICS_FOLDER: str(self._metrics_folder)},
        )
        self._servers.append(server)
        try:
            places = Places(str(self._peers_folder), self._processes, place)
            return server, await server.ask_info("load", self._share_of(self._config), self._sample, places)
        except BaseException:
            await self._dismiss(server)
            raise

    async def _dismiss(self, server: ServerHandle) -> None:
        self._servers.remove(server)
        await server.close(grace_s=0)

    def _keep(self, server: ServerHandle, place: int, restarts_at: list[float]) -> None:
        """Has the process replaced whenever it ends."""
        self._own(self._replace_when_it_ends(server, place, restarts_at))

    async def _replace_when_it_ends(self, server: ServerHandle, place: int, restarts_at: list[float]) -> None:
        await server.ended()
        self._servers.remove(server)
        log.error("server process %d ended (%s) and is replaced", server.pid, how_it_ended(server.returncode))
        mark_process_dead(server.pid, self._metrics_folder)
        while True:
            await asyncio.sleep(pause_s(restarts_at, time.monotonic()))
            restarts_at.append(time.monotonic())
            try:
                replacement = await self._start_replacement(place)
            except (errors.RewardServerError, ChildEndedError, OSError) as error:
                log.error("a server process cannot be started again: %s", error)
            else:
                self._keep(replacement, place, restarts_at)
                return

    async def _start_replacement(self, place: int) -> ServerHandle:
        async with self._changing:  # during a reload it would load the configuration of before
            server, info = await self._load_server(place)
            try:
                if info.config_digest != self.info.config_digest:
                    raise ScorerLoadError(
                        "the code of its scorers has changed since the others loaded it; load it everywhere by SIGHUP, "
                        "or put the old code back"
                    )
                await server.ask("listen")
            except BaseException:
                await self._dismiss(server)
                raise
            return server

    async def _stop_replacing(self) -> None:
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)

    def _own(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(coroutine)
        self._keepers.add(task)
        task.add_done_callback(self._keepers.discard)

    # ------------------------------------------------------------------------------------------------- all processes

    async def _prepare(self, servers: list[ServerHandle], config: ServerConfig) -> ServerInfo:
        """Loads a configuration in all processes. One goes first: code that kills its process then kills only one."""
        if not servers:
            raise ScorerLoadError("no server process is there to load it: all have ended, and are being replaced")
        first, *others = servers
        infos = [await first.ask_info("prepare", config)]
        infos += await all_of(*(server.ask_info("prepare", config) for server in others))
        return _same_info(infos)

    async def _drain(self, server: ServerHandle) -> bool:
        with contextlib.suppress(ChildEndedError, TimeoutError):
            async with asyncio.timeout(self._config.drain_grace_s + _UNRESPONSIVE_S):
                return bool((await server.ask("drain"))["finished"])
        log.error("server process %d ended before its calls had finished", server.pid)
        return False

    def _share_of(self, config: ServerConfig) -> ServerConfig:
        """The configuration of one process: all scorers at all addresses, with its share of the workers."""
        workers = math.ceil(config.workers / self._processes)
        own = {"listen": tuple(self._endpoints), "processes": 1, "workers": workers, "metrics": None}
        return config.model_copy(update=own)

    def _refresh_metrics(self, loop: asyncio.AbstractEventLoop) -> None:
        """Asks all processes for their counts, in the page's thread. What comes too late is on the next page."""
        asking = asyncio.run_coroutine_threadsafe(self._ask_for_counts(), loop)
        with contextlib.suppress(TimeoutError):
            asking.result(timeout=_REFRESH_TIMEOUT_S)

    async def _ask_for_counts(self) -> None:
        asking = [asyncio.create_task(server.ask("refresh_metrics")) for server in self._servers]
        if asking:
            await asyncio.wait(asking, timeout=_REFRESH_TIMEOUT_S)
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)


def _same_info(infos: list[ServerInfo]) -> ServerInfo:
    """The info that all processes have. Raises ScorerLoadError if they have loaded different code."""
    if len({info.config_digest for info in infos}) > 1:
        raise ScorerLoadError("the code of the scorers changed while the processes loaded it; load it again")
    return infos[0]


def _shareable_addresses(config: ServerConfig) -> list[TCP]:
    addresses = [parse_address(text) for text in config.listen]
    shareable = [address for address in addresses if isinstance(address, TCP)]
    if len(shareable) < len(addresses) or sys.platform != "linux":
        raise ConfigError(
            f"processes = {config.processes} cannot share {', '.join(config.listen)}: several processes share "
            "host:port, on Linux; listen there only, or set processes to 1"
        )
    return shareable
