"""What both clients share: the target, the credentials, and the translation of a call in both directions.

Owns the arguments of a client and the translation of gRPC's codes into our errors. Opens no connection (`credentials`
does) and decides nothing about retries (`retries` does).
"""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc

from reward_server import errors, wire
from reward_server.client.credentials import Bearer, ClientTLS, check_target, handshake_failure
from reward_server.client.proxies import code_of
from reward_server.client.replicas import Replicas
from reward_server.client.retries import HedgeAfter, check_hedge
from reward_server.client.targets import Endpoint, channel_options, proxy_of, target_of
from reward_server.types import WIRE_VERSION, Group, GroupScores, Limits, ServerInfo
from reward_server.v1 import reward_pb2 as pb

_CALLER_KEY = "reward-caller"
_OWN_KEYS = ("authorization", _CALLER_KEY)


class BaseClient:
    """Where the server is, what it accepts, and what its answers mean."""

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        timeout_s: float = 60.0,
        hedge_after_s: HedgeAfter = None,
        token: str | None = None,
        token_file: str | Path | None = None,
        tls: ClientTLS | None = None,
        metadata: Mapping[str, str] | None = None,
    ):
        """`timeout_s` is the deadline of a call that is given none; it includes the retries.

        Each call carries a bearer token: `token`, or the content of `token_file` (read for each call, so that the file
        may be replaced), or the environment variable REWARD_TOKEN. With `tls` the connection is encrypted.

        `hedge_after_s` sends a call to another replica as well when it has taken that many seconds, or longer than 95
        of 100 calls so far ("p95"). The first answer wins, and the other call is cancelled.

        `metadata` goes with each call, for what lies between: a proxy that routes by it, as Ray Serve's does by
        `application`.

        Raises ConfigError for an endpoint, a token, a certificate or metadata that cannot be used.
        """
        self._hedge_after_s = check_hedge(hedge_after_s)
        self.endpoint = endpoint if isinstance(endpoint, str) else ",".join(endpoint)
        self.timeout_s = timeout_s
        self._target = target_of(endpoint)
        # gRPC's health check carries no metadata, so that a proxy that routes by it answers for no server: Ray Serve's
        # says NOT_FOUND, and gRPC would take the connection for one to a server that is not well.
        self._options = channel_options(self._target, checks_health=not metadata)
        check_target(self._target, tls)
        self._tls = tls
        self._bearer = Bearer(token, token_file)
        self._metadata = _checked(metadata or {})
        self._name = uuid.uuid4().hex
        self._limits: Limits | None = None
        self._set_up()

    def _set_up(self) -> None:
        """Makes the state that the kind of client adds. Opens no connection."""
        raise NotImplementedError

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """The metadata of a call: the token, and the caller's name, by which a busy server is fair between ranks."""
        own = (*(self._bearer.metadata() or ()), (_CALLER_KEY, f"{self._name}-{os.getpid()}"))
        return (*own, *self._metadata)

    def replicas(self) -> Replicas:
        """The replicas behind the endpoint, which are resolved at the first use."""
        return Replicas(self._target, self._tls)

    def encode(self, group: Group) -> pb.ScoreGroupRequest:
        """A group as a request. Raises InvalidGroupError, and GroupTooLargeError beyond the server's known limit."""
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
        """A response as the scores of the group. Raises CallError if it belongs to another group."""
        scores, completions = wire.decode_scores(response), len(group)
        lengths = [len(scorer.scores) for scorer in scores.scorers]
        if scores.group_id != group.group_id or not lengths or lengths.count(completions) != len(lengths):
            raise errors.CallError(
                f"the server at {self.endpoint} answered group {group.group_id!r} of {completions} completions with "
                f"scores for group {scores.group_id!r} of {sorted(set(lengths))}"
            )
        return scores

    def decode_info(self, response: pb.GetServerInfoResponse) -> ServerInfo:
        """A response as the server's info. Raises WireVersionError if the server speaks another version."""
        info = wire.decode_info(response)
        if info.wire_version != WIRE_VERSION:
            raise errors.WireVersionError(
                f"the server at {self.endpoint} speaks wire version {info.wire_version} (software "
                f"{info.server_version}), this client {WIRE_VERSION}: install the same grpo-plugin on both sides"
            )
        self._limits = info.limits
        return info

    def hint(self, reason: str) -> str:
        """A likely cause of a connection that is cut again and again, since gRPC names none."""
        if not any(end in reason for end in ("Socket closed", "Connection reset", "Broken pipe")):
            return ""
        if self._tls is None:
            return "; does the server speak TLS, which this client was not given?"
        if self._tls.cert_file is None:
            return "; does the server ask for a client certificate?"
        return f"; does the server trust the CA of {self._tls.cert_file}?"

    def error_of(self, error: Any, timeout_s: float, failures: Sequence[Any] = ()) -> errors.RewardServerError:
        """The error that a call ended with. `failures` are its failed attempts, which may include `error` itself."""
        code, details = code_of(error), error.details() or ""
        if len(failures) > 1:
            details = f"{details} (attempt {len(failures)})"
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            earlier = [failure for failure in failures if failure is not error]
            why = f"; {len(earlier)} attempts failed, the last: {earlier[-1].details()}" if earlier else ""
            return errors.DeadlineError(
                f"no answer from {self.endpoint} within {timeout_s:g} s{why}{self._proxy_hint()}"
            )
        if code is grpc.StatusCode.UNIMPLEMENTED:
            return errors.WireVersionError(
                f"the server at {self.endpoint} is no reward service of wire version {WIRE_VERSION}: {details}"
            )
        if code is grpc.StatusCode.UNAVAILABLE:
            reason = handshake_failure(details)
            details = details if reason is None else f"{reason} ({details})"
            return errors.UnavailableError(
                f"no reward service answers at {self.endpoint}: {details}{self._proxy_hint()}"
            )
        if code is grpc.StatusCode.NOT_FOUND:  # Ray Serve's proxy says so
            hint = 'an application among several is chosen by metadata={"application": NAME}'
            return errors.CallError(f"there is no such application at {self.endpoint}: {details}; {hint}", code)
        if code is grpc.StatusCode.CANCELLED:
            return errors.CallError(f"the call to {self.endpoint} was cancelled: {details}", code)
        return errors.error_of(code, f"{self.endpoint}: {details}")

    def _proxy_hint(self) -> str:
        proxy = proxy_of(self._target)
        if proxy is None:
            return ""
        return f"; the connection goes through the proxy of {proxy}: to connect directly, add the host to no_proxy"


def _checked(metadata: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """The pairs. Raises ConfigError for a key or a value that gRPC refuses or that is the client's own."""
    for key, value in metadata.items():
        if not re.fullmatch(r"[a-z0-9_.-]+", key) or key.startswith("grpc-") or key in _OWN_KEYS:
            raise errors.ConfigError(
                f"metadata[{key!r}]: a key is lower-case letters, digits, `-`, `_` and `.`, does not begin with grpc-, "
                f"and is none of {', '.join(_OWN_KEYS)}, which the client sets"
            )
        if not isinstance(value, str) or not re.fullmatch(r"[ -~]*", value):
            raise errors.ConfigError(f"metadata[{key!r}] = {value!r:.80}: a value is printable ASCII")
    return tuple(metadata.items())


def span_attributes(group: Group) -> dict[str, str | int]:
    """The attributes of a tracing span that belongs to a group."""
    return {"run_id": group.run_id, "step": group.step, "group_id": group.group_id, "completions": len(group)}
