"""Several server processes that are one server: they share its addresses, and start, reload, drain and end together.

Owns the processes, the ports that they share and the replacing of one that dies. Each of them is a whole server with an
event loop of its own (`member`), and the kernel deals the callers' connections out to them. What becomes of a call is
theirs.

    fleet = Fleet(config)
    await fleet.startup()         every process has loaded, and listens
    await fleet.serve()           until ask_to_stop()
    finished = await fleet.drain()
    await fleet.shutdown()

A reload is prepared in all of them before it takes over in any: it takes over everywhere or nowhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
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

from reward_server import errors, wire
from reward_server.addresses import TCP, parse_address
from reward_server.config import ServerConfig
from reward_server.errors import ConfigError, ScorerLoadError
from reward_server.execution.tasks import CUT_SHORT, all_of, until
from reward_server.launch.supervised import pause_s
from reward_server.observability import logs
from reward_server.observability.metrics import MetricsPage, shared_registry
from reward_server.processes.child import Child, ChildEndedError
from reward_server.processes.lifetime import how_it_ended
from reward_server.serving.reload import warn_of_what_waits
from reward_server.serving.security import Security
from reward_server.serving.server import page_of
from reward_server.types import Group, ServerInfo

log = logging.getLogger("reward_server")

METRICS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
"""Where prometheus_client keeps each process's counters, so that one page can add them up."""

# A member's own drain_grace_s ends its calls; this much later one that does not answer is killed.
_UNRESPONSIVE_S = 10.0
_CLOSE_GRACE_S = 5.0
_REFRESH_TIMEOUT_S = 1.0


class Fleet:
    """`config.processes` servers of one configuration at a time."""

    def __init__(self, config: ServerConfig, sample: Group | None = None, log_format: str = "text"):
        """`sample` is what another configuration is tested with before it takes over; None for a made-up one.

        Raises ConfigError for credentials that cannot be used and addresses that are none, not safe or not shareable.
        """
        self._config = config
        self._sample = sample
        self._log_format = logs.FORMATS.index(log_format)
        self._addresses = _shareable(config)
        self._security = Security(config)
        self._security.refuse_exposed(self._addresses)
        self._ports: list[socket.socket] = []
        self.endpoints: list[str] = []
        """Where all of them listen, with the real ports. Empty before startup."""
        self._metrics_folder: str | None = None
        self._page: MetricsPage | None = None
        self.metrics_url: str | None = None
        """Where Prometheus reads the sums over all of them. None before startup, and without a page."""
        self._info: ServerInfo | None = None
        self._members: list[_Member] = []
        self._keepers: set[asyncio.Task[None]] = set()
        self._changing = asyncio.Lock()
        self._stopping = False
        self._asked = asyncio.Event()
        self._at_once = asyncio.Event()

    @property
    def info(self) -> ServerInfo:
        assert self._info is not None, "startup() comes first"
        return self._info

    @property
    def pids(self) -> list[int]:
        return [member.pid for member in self._members]

    def ask_to_stop(self, at_once: bool = False) -> None:
        """Ends `serve`; asked again, or `at_once`, ends `drain` too."""
        if at_once or self._asked.is_set():
            self._at_once.set()
        self._asked.set()

    async def startup(self) -> bool:
        """Returns once all of them take calls. False if it was asked to stop before.

        Raises ConfigError or ScorerLoadError; then everything that was begun has ended.
        """
        try:
            return await until(self._asked, self._start()) is not CUT_SHORT
        except BaseException:
            await self.shutdown()
            raise

    async def serve(self) -> None:
        """Returns when the fleet is asked to stop."""
        await self._asked.wait()

    async def reload(self, config: ServerConfig) -> None:
        """Has another configuration take over in all processes at once, or raises and leaves all as they are."""
        async with self._changing:
            members = list(self._members)
            try:
                info = await self._prepared(members, self._share_of(config))
            except BaseException:
                for member in members:
                    member.tell("discard")
                raise
            warn_of_what_waits(self._config, config)
            self._config, self._info = config, info
            # One that ended meanwhile is replaced by one of the new configuration.
            await asyncio.gather(*(member.ask("switch") for member in members), return_exceptions=True)

    async def drain(self) -> bool:
        """Refuses new calls and lets those in flight finish within the grace. Returns whether all of them did."""
        await self._stop_replacing()
        log.info("draining %d server processes", len(self._members))
        draining = all_of(*(self._drained(member) for member in self._members))
        finished = asyncio.create_task(draining)
        if await until(self._at_once, asyncio.wait({finished})) is CUT_SHORT:
            for member in self._members:
                member.tell("end_at_once")
        return all(await finished)

    async def shutdown(self) -> None:
        """Ends every process and gives up the ports. May follow on any state."""
        await self._stop_replacing()
        await asyncio.gather(*(member.close(_CLOSE_GRACE_S) for member in self._members), return_exceptions=True)
        self._members.clear()
        for port in self._ports:
            port.close()
        if self._page is not None:
            await asyncio.to_thread(self._page.close)  # it waits for half a second
        if self._metrics_folder is not None:
            shutil.rmtree(self._metrics_folder, ignore_errors=True)

    # ------------------------------------------------------------------------------------------------ lives and deaths

    async def _start(self) -> None:
        self._metrics_folder = tempfile.mkdtemp(prefix="reward-metrics-")
        loop = asyncio.get_running_loop()
        registry = shared_registry(self._metrics_folder, lambda: self._refresh_metrics(loop))
        self._page = page_of(self._config, self._security, registry)
        if self._page is not None:
            self.metrics_url = self._page.open()
        for address in self._addresses:
            ports, endpoint = address.reserve()
            self._ports += ports
            self.endpoints.append(endpoint)
        members = await all_of(*(self._load_member() for _ in range(self._config.processes)))
        self._info = _the_same([info for _, info in members])
        await all_of(*(member.ask("listen") for member, _ in members))
        for member, _ in members:
            self._own(self._keep(member, []))

    async def _load_member(self) -> tuple[_Member, ServerInfo]:
        env = {METRICS_FOLDER: str(self._metrics_folder)}
        member = await _Member.start(
            "reward_server.serving.fleet_member", log.getEffectiveLevel(), self._log_format, env=env
        )
        self._members.append(member)
        try:
            return member, await member.info_of("load", self._share_of(self._config), self._sample)
        except BaseException:
            await self._dismiss(member)
            raise

    async def _dismiss(self, member: _Member) -> None:
        self._members.remove(member)
        await member.close(grace_s=0)

    async def _keep(self, member: _Member, restarts_at: list[float]) -> None:
        """Replaces the member when it ends, and keeps that one."""
        await member.ended()
        self._members.remove(member)
        log.error("server process %d ended (%s) and is replaced", member.pid, how_it_ended(member.returncode))
        mark_process_dead(member.pid, self._metrics_folder)
        while True:
            await asyncio.sleep(pause_s(restarts_at, time.monotonic()))
            restarts_at.append(time.monotonic())
            try:
                successor = await self._replacement()
            except (errors.RewardServerError, ChildEndedError, OSError) as error:
                log.error("a server process cannot be started again: %s", error)
            else:
                self._own(self._keep(successor, restarts_at))
                return

    async def _replacement(self) -> _Member:
        async with self._changing:  # not beside a reload: it would serve what is no longer the fleet's
            member, info = await self._load_member()
            try:
                if info.config_digest != self.info.config_digest:
                    raise ScorerLoadError(
                        "the code of its scorers has changed since the others loaded it; load it everywhere by SIGHUP, "
                        "or put the old code back"
                    )
                await member.ask("listen")
            except BaseException:
                await self._dismiss(member)
                raise
            return member

    async def _drained(self, member: _Member) -> bool:
        with contextlib.suppress(ChildEndedError, TimeoutError):
            async with asyncio.timeout(self._config.drain_grace_s + _UNRESPONSIVE_S):
                return bool((await member.ask("drain"))["finished"])
        log.error("server process %d ended before its calls had finished", member.pid)
        return False

    async def _stop_replacing(self) -> None:
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)

    async def _prepared(self, members: list[_Member], config: ServerConfig) -> ServerInfo:
        """What all of them have loaded. One goes ahead: code that takes its process down takes down no other."""
        if not members:
            raise ScorerLoadError("no server process is there to load it: all have ended, and are being replaced")
        ahead, *others = members
        infos = [await ahead.info_of("prepare", config)]
        infos += await all_of(*(member.info_of("prepare", config) for member in others))
        return _the_same(infos)

    def _share_of(self, config: ServerConfig) -> ServerConfig:
        """What one process is told: all of it serves all scorers at all addresses, with its share of the workers."""
        workers = math.ceil(config.workers / self._config.processes)
        own = {"listen": tuple(self.endpoints), "processes": 1, "workers": workers, "metrics": None}
        return config.model_copy(update=own)

    def _refresh_metrics(self, loop: asyncio.AbstractEventLoop) -> None:
        """In the page's thread. What a process that does not answer in time has counted since is on the next page."""
        asking = asyncio.run_coroutine_threadsafe(self._ask_for_counts(), loop)
        with contextlib.suppress(TimeoutError):
            asking.result(timeout=_REFRESH_TIMEOUT_S)

    async def _ask_for_counts(self) -> None:
        asking = [asyncio.create_task(member.ask("refresh_metrics")) for member in self._members]
        if asking:
            await asyncio.wait(asking, timeout=_REFRESH_TIMEOUT_S)
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)

    def _own(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(coroutine)
        self._keepers.add(task)
        task.add_done_callback(self._keepers.discard)


class _Member(Child):
    """A server process as its supervisor sees it: questions to it by number, several at once."""

    def __init__(self, *process: Any):
        super().__init__(*process)
        self._numbers = itertools.count()
        self._asked: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._told: set[asyncio.Task[Any]] = set()
        self._reading = asyncio.create_task(self._read())

    async def ask(self, verb: str, *arguments: Any) -> dict[str, Any]:
        """Raises what the process does, as the error that it is; ChildEndedError if it ends before it answers."""
        number = next(self._numbers)
        self._asked[number] = answer = asyncio.get_running_loop().create_future()
        try:
            await self.send((number, verb, *arguments))
            await asyncio.wait({answer, self._reading}, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                raise ChildEndedError(f"server process {self.pid} ended")
        finally:
            del self._asked[number]
        told = answer.result()
        if "error" in told:
            raise getattr(errors, told["type"], ScorerLoadError)(told["error"])
        return told

    async def info_of(self, verb: str, *arguments: Any) -> ServerInfo:
        """What it is, or would be, once it has loaded what the verb is about."""
        try:
            told = await self.ask(verb, *arguments)
        except ChildEndedError as error:
            await self.ended()
            raise ScorerLoadError(
                f"a server process died while loading the scorers ({how_it_ended(self.returncode)}); its output is in "
                "the server's standard error"
            ) from error
        return wire.decode_info(wire.pb.GetServerInfoResponse.FromString(bytes.fromhex(told["info"])))

    def tell(self, verb: str) -> None:
        """Asks without waiting."""
        task = asyncio.create_task(self.ask(verb))
        self._told.add(task)
        task.add_done_callback(self._hear)

    async def close(self, grace_s: float = _CLOSE_GRACE_S) -> None:
        await super().close(grace_s)
        await asyncio.wait({self._reading, *self._told})

    def _hear(self, task: asyncio.Task[Any]) -> None:
        self._told.discard(task)
        if not task.cancelled():
            task.exception()  # it has ended: its keeper says so

    async def _read(self) -> None:
        with contextlib.suppress(ChildEndedError):
            while True:
                told = await self.receive()
                if (answer := self._asked.get(told["number"])) is not None and not answer.done():
                    answer.set_result(told)


def _the_same(infos: list[ServerInfo]) -> ServerInfo:
    """Raises ScorerLoadError unless all processes have loaded the same."""
    if len({info.config_digest for info in infos}) > 1:
        raise ScorerLoadError("the code of the scorers changed while the processes loaded it; load it again")
    return infos[0]


def _shareable(config: ServerConfig) -> list[TCP]:
    addresses = [parse_address(text) for text in config.listen]
    shareable = [address for address in addresses if isinstance(address, TCP)]
    if len(shareable) < len(addresses) or sys.platform != "linux":
        raise ConfigError(
            f"processes = {config.processes} cannot share {', '.join(config.listen)}: several processes share "
            "host:port, on Linux; listen there only, or set processes to 1"
        )
    return shareable
