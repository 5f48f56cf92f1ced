"""How the replicas of a deployment take over a configuration together, so that a caller sees one change.

Owns the order of a takeover and the gate through which calls begin. Each replica prepares the new configuration beside
the one that serves. The leader, which is the replica of rank 0, waits until all have prepared it; then it has all hold
new calls, and then has all switch:

    prepare everywhere ─► hold: no new call begins ─► switch everywhere: the held calls begin on the new one

So a call that begins after an answer of the new configuration is answered by the new one. Calls in flight finish on the
old one. A replica that starts meanwhile waits with its first call until the others have switched.

Ray gives every replica the new configuration, but one after another. A leader that dies is replaced by Ray, and its
successor begins anew. Knows nothing of how messages travel (`siblings`) or how a configuration is loaded (`serving`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any, Protocol

from reward_server.errors import RewardServerError
from reward_server.ray.configuration import config_of, name_of
from reward_server.serving.reload import warn_of_ignored_changes
from reward_server.serving.server import Prepared, RewardServer

log = logging.getLogger("reward_server")

# The load of a configuration ends within this time, and so does a takeover.
_TAKEOVER_TIMEOUT_S = 960.0
# How long a replica that starts waits for others that do not prepare what it serves, since Ray replaces them instead.
_JOIN_TIMEOUT_S = 60.0
# The leader dies at worst between hold and switch.
_LONGEST_HOLD_S = 5.0
_ASK_AGAIN_S = 0.2


@dataclass(frozen=True, slots=True)
class State:
    """Which configurations a replica serves, prepares, has prepared and has refused, by their names; "" for none."""

    serving: str
    preparing: str = ""
    prepared: str = ""
    refused: str = ""

    def is_ready_for(self, name: str) -> bool:
        return name in (self.serving, self.prepared)


class Others(Protocol):
    """The replicas, as `siblings.Siblings` reaches them."""

    def ask(self, *command: str) -> Awaitable[list[Any]]: ...
    def running(self) -> Awaitable[int | None]: ...


class Takeover:
    """The takeovers of one replica."""

    def __init__(self, server: RewardServer, name: str, replicas: Others):
        """`name` is that of the configuration that the server has loaded."""
        self._server = server
        self._replicas = replicas
        self._serving = self._wanted = name
        self._prepared: tuple[str, Prepared] | None = None
        self._refused = ""
        self._open = asyncio.Event()
        self._open.set()
        self._release: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None

    async def may_begin(self) -> None:
        """Returns when a call may begin, at most after the longest hold."""
        await self._open.wait()

    async def join(self, leads: bool) -> None:
        """Returns when no other replica serves another configuration, so that this one may take calls."""
        if leads:
            self._task = asyncio.create_task(self._lead_safely(self._wanted))
        deadline = time.monotonic() + _JOIN_TIMEOUT_S
        while time.monotonic() < deadline:
            if await self._replicas.running() == 0:
                return
            states = await self._states()
            if states and all(state.serving == self._serving for state in states):
                return
            if any(self._serving in (state.preparing, state.prepared) for state in states):
                deadline = time.monotonic() + _JOIN_TIMEOUT_S
            await asyncio.sleep(_ASK_AGAIN_S)
        log.warning("other replicas serve another configuration: a trainer sees two until Ray has replaced them")

    def begin(self, user_config: Any, leads: bool) -> None:
        """Prepares a configuration in the background, and switches to it when all replicas have."""
        name = name_of(user_config)
        if name != self._wanted or leads:  # a replica that leads from now on ends what its predecessor began
            if self._task is not None:
                self._task.cancel()
            self._wanted, self._refused = name, ""
            self._task = asyncio.create_task(self._take_over(user_config, name, leads))

    def obey(self, command: str, name: str) -> State:
        """Executes a command of the leader about the configuration of this name: tell, hold, switch or release."""
        if command == "hold" and self._is_prepared(name):
            self._hold()
        elif command == "switch":
            self._switch(name)
        elif command == "release":
            self._let_go()
        prepared = self._prepared[0] if self._prepared else ""
        preparing = "" if self._wanted in (self._serving, prepared, self._refused) else self._wanted
        return State(self._serving, preparing, prepared, self._refused)

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._discard()
        self._let_go()

    # ---------------------------------------------------------------------------------------------------- every replica

    async def _take_over(self, user_config: Any, name: str, leads: bool) -> None:
        if not self._is_prepared(name):
            await self._discard()
            if name != self._serving:
                await self._prepare(user_config, name)
        if leads:
            await self._lead_safely(name)

    async def _prepare(self, user_config: Any, name: str) -> None:
        try:
            self._prepared = (name, await self._server.prepare(config_of(user_config)))
        except Exception as error:
            self._refused = name
            is_ours = isinstance(error, RewardServerError)
            log.error("configuration %s is refused, the old one serves on: %s", name, error, exc_info=not is_ours)

    def _is_prepared(self, name: str) -> bool:
        return self._prepared is not None and self._prepared[0] == name

    def _switch(self, name: str) -> None:
        if self._is_prepared(name):
            assert self._prepared is not None
            warn_of_ignored_changes(self._server.config, self._prepared[1].config)
            self._server.switch(self._prepared[1])
            self._serving, self._prepared = name, None
        self._let_go()

    def _hold(self) -> None:
        self._let_go()
        self._open.clear()
        self._release = asyncio.get_running_loop().call_later(_LONGEST_HOLD_S, self._let_go)

    def _let_go(self) -> None:
        if self._release is not None:
            self._release.cancel()
            self._release = None
        self._open.set()

    async def _discard(self) -> None:
        prepared, self._prepared = self._prepared, None
        if prepared is not None:
            await prepared[1].scorers.close()

    # ------------------------------------------------------------------------------------------------------- the leader

    async def _lead_safely(self, name: str) -> None:
        try:
            async with asyncio.timeout(_TAKEOVER_TIMEOUT_S):
                await self._lead(name)
        except TimeoutError:
            log.error("configuration %s did not take over within %g s", name, _TAKEOVER_TIMEOUT_S)
        except Exception:
            log.exception("configuration %s did not take over", name)

    async def _lead(self, name: str) -> None:
        while True:
            states = await self._states()
            if any(state.refused == name for state in states):
                log.error("a replica has refused configuration %s, so that all serve on as before", name)
                return
            is_everywhere = all(state.is_ready_for(name) for state in states)
            if is_everywhere and await self._replicas.running() == len(states):
                if all(state.serving == name for state in states):
                    return
                if await self._switch_all(name, len(states)):
                    log.info("configuration %s serves on %d replicas", name, len(states))
                    return
            await asyncio.sleep(_ASK_AGAIN_S)

    async def _switch_all(self, name: str, replicas: int) -> bool:
        held = await self._states("hold", name)
        if len(held) < replicas or not all(state.is_ready_for(name) for state in held):
            await self._replicas.ask("release", name)
            return False
        switched = await self._states("switch", name)
        return all(state.serving == name for state in switched)

    async def _states(self, command: str = "tell", name: str = "") -> list[State]:
        """The states of those that answer."""
        return [answer for answer in await self._replicas.ask(command, name) if isinstance(answer, State)]
