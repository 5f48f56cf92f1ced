"""What every client shares: the target and options of its channel, and the two-way translation of a call.

Owns endpoints, the options of gRPC (balancing, health, keepalive) and the turning of its codes into our errors.
Opens nothing itself, and retries nothing: that is `retries`.
"""

from __future__ import annotations

import json
import os
import socket
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc

from reward_server import errors, wire
from reward_server.client.credentials import Bearer, ClientTLS, check_target, handshake_failure
from reward_server.client.retries import HedgeAfter, check_hedge
from reward_server.types import WIRE_VERSION, Group, GroupScores, Limits, ServerInfo
from reward_server.v1 import reward_pb2 as pb

Endpoint = str | Sequence[str]

_SERVICE_CONFIG = json.dumps(
    {
        # Both are needed for traffic to leave a replica that turns NOT_SERVING (gRFC A17).
        "loadBalancingConfig": [{"round_robin": {}}],
        "healthCheckConfig": {"serviceName": ""},
    }
)

CHANNEL_OPTIONS = (
    ("grpc.service_config", _SERVICE_CONFIG),
    # With no retry policy this leaves gRPC's transparent retries: of calls that provably reached no server.
    ("grpc.enable_retries", 1),
    # Above the default of 256 KiB a request is silently never retried; groups of long completions are larger.
    ("grpc.per_rpc_retry_buffer_size", 64 << 20),
    ("grpc.max_send_message_length", -1),  # the server's own limit is checked before sending, and names itself
    ("grpc.max_receive_message_length", -1),
    # Finds a partition or a stopped replica within 15 s instead of at the deadline. Our server takes pings 5 s apart.
    # It is the ping's own time-out that ends the connection (grpcio 1.85): 60 s by default, whatever keepalive's says.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
    # A name is looked up again at most this often, by default every 30 s; when connections end, it is.
    ("grpc.dns_min_time_between_resolutions_ms", 5_000),
    # Back at a replica that returns within a second.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 1_000),
)


def target_of(endpoint: Endpoint) -> str:
    """The gRPC target of one or several endpoints.

    One endpoint is `host:port` (a DNS name with several addresses is balanced over), `unix:path` or any gRPC target.
    Several are `host:port` each, and are balanced over at the addresses that their names have now.
    Raises ConfigError for what is neither.
    """
    endpoints = [endpoint] if isinstance(endpoint, str) else list(endpoint)
    if not endpoints:
        raise errors.ConfigError("no endpoint given: write host:port or unix:path")
    if len(endpoints) == 1:
        name = endpoints[0]
        if name.startswith(("unix:", "unix-abstract:", "dns:", "ipv4:", "ipv6:")):
            return name
        _host_and_port(name)
        return f"dns:///{name}"
    return "ipv4:" + ",".join(address for name in endpoints for address in _addresses(name))


def _host_and_port(name: str) -> tuple[str, int]:
    host, colon, port = name.rpartition(":")
    if not colon or not host or "/" in name or not port.isdigit() or not 0 < int(port) < 65536:
        raise errors.ConfigError(f"endpoint {name!r} is neither host:port nor unix:path")
    return host, int(port)


def _addresses(name: str) -> list[str]:
    host, port = _host_and_port(name.removeprefix("dns:///"))
    try:
        found = socket.getaddrinfo(host, port, socket.AF_INET, socket.SOCK_STREAM)
    except OSError as error:
        raise errors.ConfigError(f"endpoint {name!r} cannot be resolved to an IPv4 address: {error}") from error
    return [f"{address[4][0]}:{port}" for address in found]


def names_of(group: Group) -> dict[str, str | int]:
    """What a span says of a group."""
    return {"run_id": group.run_id, "step": group.step, "group_id": group.group_id, "completions": len(group)}


class BaseClient:
    """What both clients share: where the server is, what it takes, and what its answers mean."""

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        timeout_s: float = 60.0,
        hedge_after_s: HedgeAfter = None,
        token: str | None = None,
        token_file: str | Path | None = None,
        tls: ClientTLS | None = None,
    ):
        """`timeout_s` is the deadline of a call that is given none, retries included.

        Calls carry the bearer `token`, or that in `token_file` (read for each call, so that it may be replaced), or
        that in the environment's REWARD_TOKEN. With `tls` they are encrypted.

        With `hedge_after_s`, another replica is asked as well when a call has taken that long, or longer than 95 of
        100 calls so far ("p95"); the first answer wins and the others are cancelled.
        """
        self._hedge_after_s = check_hedge(hedge_after_s)
        self.endpoint = endpoint if isinstance(endpoint, str) else ",".join(endpoint)
        self.timeout_s = timeout_s
        self._target = target_of(endpoint)
        check_target(self._target, tls)
        self._tls = tls
        self._bearer = Bearer(token, token_file)
        self._name = uuid.uuid4().hex
        self._limits: Limits | None = None

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What each call brings: the token, and who calls, so that a busy server is fair between ranks."""
        return (*(self._bearer.metadata() or ()), ("reward-caller", f"{self._name}-{os.getpid()}"))

    def encode(self, group: Group) -> pb.ScoreGroupRequest:
        request = wire.encode_group(group)
        limits = self._limits
        if limits is not None and request.ByteSize() > limits.max_group_bytes:
            raise errors.GroupTooLargeError(
                f"group {group.group_id!r} is {request.ByteSize()} bytes with its {len(group)} completions; the server "
                f"at {self.endpoint} takes {limits.max_group_bytes}: raise limits.max_group_bytes in its "
                "configuration, or send fewer columns"
            )
        return request

    def decode(self, response: pb.ScoreGroupResponse, group: Group) -> GroupScores:
        scores = wire.decode_scores(response)
        lengths = {len(scorer.scores) for scorer in scores.scorers}
        if scores.group_id != group.group_id or lengths != {len(group)}:
            raise errors.CallError(
                f"the server at {self.endpoint} answered group {group.group_id!r} of {len(group)} completions with "
                f"scores for group {scores.group_id!r} of {sorted(lengths)}"
            )
        return scores

    def decode_info(self, response: pb.GetServerInfoResponse) -> ServerInfo:
        info = wire.decode_info(response)
        if info.wire_version != WIRE_VERSION:
            raise errors.WireVersionError(
                f"the server at {self.endpoint} speaks wire version {info.wire_version} (software "
                f"{info.server_version}), this client {WIRE_VERSION}: install the same grpo-plugin on both sides"
            )
        self._limits = info.limits
        return info

    def hint(self, reason: str) -> str:
        """What a connection that is cut again and again may be about: gRPC does not say."""
        if not any(end in reason for end in ("Socket closed", "Connection reset", "Broken pipe")):
            return ""
        if self._tls is None:
            return "; does the server speak TLS, which this client was not given?"
        if self._tls.cert_file is None:
            return "; does the server ask for a client certificate?"
        return f"; does the server trust the CA of {self._tls.cert_file}?"

    def error_of(self, error: Any, timeout_s: float, failures: Sequence[Any] = ()) -> errors.RewardServerError:
        """The error that a call ended with; `failures` are its attempts that failed, itself perhaps included."""
        code, details = error.code(), error.details() or ""
        if len(failures) > 1:
            details = f"{details} (attempt {len(failures)})"
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            earlier = [failure for failure in failures if failure is not error]
            why = f"; {len(earlier)} attempts failed, the last: {earlier[-1].details()}" if earlier else ""
            return errors.DeadlineError(f"no answer from {self.endpoint} within {timeout_s:g} s{why}")
        if code is grpc.StatusCode.UNIMPLEMENTED:
            return errors.WireVersionError(
                f"what answers at {self.endpoint} is no reward service of wire version {WIRE_VERSION}: {details}"
            )
        if code is grpc.StatusCode.UNAVAILABLE:
            reason = handshake_failure(details)
            details = details if reason is None else f"{reason} ({details})"
            return errors.UnavailableError(f"no reward service answers at {self.endpoint}: {details}")
        if code is grpc.StatusCode.CANCELLED:
            return errors.CallError(f"the call to {self.endpoint} was cancelled: {details}", code)
        return errors.error_of(code, f"{self.endpoint}: {details}")
