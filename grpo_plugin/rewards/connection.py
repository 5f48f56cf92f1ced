"""Finds the reward service, or starts the embedded one, and makes sure that every rank sees the same.

Owns the client and the embedded server process, and checks that the service answers and that all ranks reach the same
configuration. Knows nothing of steps or data.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from accelerate.utils import gather_object

from grpo_plugin.config import setting
from reward_server.client import ClientTLS, Endpoint, RewardClient
from reward_server.errors import ConfigError, RewardServerError
from reward_server.launch import SupervisedServer, launch_supervised
from reward_server.types import ScorerInfo, ServerInfo

T = TypeVar("T")


class _State(Protocol):
    process_index: int
    local_process_index: int


@dataclass(frozen=True, slots=True)
class Connection:
    """A service that answers: its client and description, the scorers in use, and the process if it is embedded."""

    client: RewardClient
    info: ServerInfo
    scorers: tuple[ScorerInfo, ...]
    run_id: str
    server: SupervisedServer | None

    def close(self) -> None:
        """Ends the calls in flight, and the embedded service."""
        self.client.close()
        if self.server is not None:
            self.server.stop()


def connect(args: Any, state: _State) -> Connection | None:
    """The service that `args` name, or None if they name none. Every rank calls it, and all fail if one does.

    Raises ConfigError, ScorerLoadError, UnavailableError or WireVersionError, each naming the value and the way out.
    """
    endpoint, config = setting(args, "reward_endpoint"), setting(args, "reward_config")
    if not endpoint and not config:
        return None
    timeout_s = setting(args, "reward_connect_timeout_s")
    is_starter = not endpoint and state.local_process_index == 0
    server = together(lambda: launch_supervised(Path(config), timeout_s=timeout_s) if is_starter else None, state)
    try:
        endpoints = gather_object([server.endpoint if server else None])
        where = endpoint or endpoints[state.process_index - state.local_process_index]
        client, info = together(lambda: _reach(where, args, timeout_s), state)
        _check_same(gather_object([info.config_digest]), client.endpoint)
        scorers = choose_scorers(info, setting(args, "reward_scorers"))
    except BaseException:
        if server is not None:
            server.stop()
        raise
    return Connection(client, info, scorers, run_id=gather_object([uuid.uuid4().hex])[0], server=server)


def reconnect(connection: Connection, args: Any, state: _State) -> Connection:
    """The same service for a new run, as it is now: it may have come back with another configuration meanwhile.

    Every rank calls it, and all fail if one does. Raises ConfigError if a scorer in use is gone, and what `connect`
    raises.
    """
    timeout_s = setting(args, "reward_connect_timeout_s")
    info = together(lambda: connection.client.connect(timeout_s), state)
    _check_same(gather_object([info.config_digest]), connection.client.endpoint)
    scorers = choose_scorers(info, [scorer.name for scorer in connection.scorers])
    return replace(connection, info=info, scorers=scorers, run_id=gather_object([uuid.uuid4().hex])[0])


def _reach(where: Endpoint, args: Any, timeout_s: float) -> tuple[RewardClient, ServerInfo]:
    client = RewardClient(
        where,
        timeout_s=setting(args, "reward_timeout_s"),
        hedge_after_s="p95" if setting(args, "reward_hedge") else None,
        token_file=setting(args, "reward_token_file"),
        tls=_tls(args),
    )
    return client, client.connect(timeout_s)


def _tls(args: Any) -> ClientTLS | None:
    files = [setting(args, name) for name in ("reward_tls_ca", "reward_tls_cert", "reward_tls_key")]
    return ClientTLS(*files) if any(files) else None


def together(act: Callable[[], T], state: _State) -> T:
    """What `act` returns; if it raises on any rank, every rank raises."""
    error: Exception | None = None
    try:
        result = act()
    except Exception as raised:
        error = raised
    errors = gather_object([(state.process_index, str(error))] if error else [])
    if error is not None:
        raise error
    if errors:
        raise RewardServerError(f"rank {errors[0][0]} failed, so every rank stops: {errors[0][1]}")
    return result


def choose_scorers(info: ServerInfo, names: Sequence[str] | None) -> tuple[ScorerInfo, ...]:
    """The scorers of a server by name; all of them if no names are given."""
    if names is None:
        return info.scorers
    known = {scorer.name: scorer for scorer in info.scorers}
    missing = [name for name in names if name not in known]
    if missing:
        raise ConfigError(f"reward_scorers names {missing}; the reward service has {sorted(known)}")
    return tuple(known[name] for name in names)


def _check_same(digests: Sequence[str], endpoint: str) -> None:
    if len(set(digests)) > 1:
        raise ConfigError(
            f"the ranks reach services of different configurations at {endpoint}: digests {sorted(set(digests))}; "
            "deploy one configuration to every replica"
        )
