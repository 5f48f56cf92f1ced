"""`reward-server health`: the standard health check (grpc.health.v1) as a command, for containers and scripts.

Prints one line. 0: the server serves; 1: it does not, or does not answer; 2: the input cannot be used.
The check needs no token, but a proxy in front of the server may: credentials are sent if there are some. The protocol's
two messages are one field each and are read here, so that a machine which has only the client can ask.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

import grpc

from reward_server.cli.arguments import add_credentials, seconds
from reward_server.client.credentials import Bearer, ClientTLS, channel, check_target, handshake_failure
from reward_server.client.targets import channel_options, target_of
from reward_server.errors import ConfigError

_METHOD = "/grpc.health.v1.Health/Check"
_SERVING = b"\x08\x01"  # HealthCheckResponse{status: SERVING}
_ONE_CHECK_S = 5.0
_BETWEEN_CHECKS_S = 0.2

Answer = str | None
"""None if the server serves, else why it does not."""


def add_command(subcommands: Any) -> None:
    """Adds `health` to the parser of `reward-server`."""
    parser = subcommands.add_parser(
        "health", help="ask a server whether it serves; exit code 0 if so", allow_abbrev=False
    )
    parser.set_defaults(command=_health)
    parser.add_argument("--endpoint", metavar="E", required=True, help="the server: host:port or unix:path")
    add_credentials(parser)
    parser.add_argument("--tls-cert", metavar="FILE", help="own certificate, for a server that asks for one")
    parser.add_argument("--tls-key", metavar="FILE", help="its private key, unencrypted")
    parser.add_argument("--tls-name", metavar="NAME", help="name in the server's certificate, if not the endpoint's")
    parser.add_argument("--wait", type=seconds, metavar="S", help="ask again until it serves, for at most S seconds")


def _health(args: argparse.Namespace) -> int:
    try:
        problem = check_health(args.endpoint, wait_s=args.wait, token_file=args.token_file, tls=_tls(args))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if problem is None:
        print(f"{args.endpoint} serves")
        return 0
    waited = "" if args.wait is None else f" within {args.wait:g} s"
    print(f"{args.endpoint} does not serve{waited}: {problem}", file=sys.stderr)
    return 1


def _tls(args: argparse.Namespace) -> ClientTLS | None:
    given = (args.tls_ca, args.tls_cert, args.tls_key, args.tls_name)
    return ClientTLS(*given) if any(given) else None


def check_health(endpoint: str, *, wait_s: float | None, token_file: str | None, tls: ClientTLS | None) -> Answer:
    """Asks once, or until the server serves or `wait_s` has passed. Raises ConfigError for unusable arguments."""
    target = target_of(endpoint)
    check_target(target, tls)
    metadata = Bearer(None, token_file).metadata()
    # The client's service config would keep calls from a server that does not serve, so nobody could be asked.
    options = [option for option in channel_options(target) if option[0] != "grpc.service_config"]
    deadline = time.monotonic() + (wait_s or 0.0)
    with channel(target, options, tls) as connection:
        check: grpc.UnaryUnaryMultiCallable[bytes, bytes] = connection.unary_unary(_METHOD)
        while (problem := _ask(check, metadata)) and (left_s := deadline - time.monotonic()) > 0:
            time.sleep(min(_BETWEEN_CHECKS_S, left_s))
        return problem


def _ask(check: grpc.UnaryUnaryMultiCallable[bytes, bytes], metadata: Any) -> Answer:
    try:
        answer = check(b"", timeout=_ONE_CHECK_S, metadata=metadata)
    except grpc.RpcError as error:
        return _reason(error.code(), error.details() or "")
    return None if answer == _SERVING else "it answers NOT_SERVING: it drains, or is not ready"


def _reason(code: grpc.StatusCode, details: str) -> str:
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return "it has no health service; for a reward server, install grpo-plugin[server] there"
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return f"no answer within {_ONE_CHECK_S:g} s"
    return " ".join((handshake_failure(details) or f"{code.name}: {details}").split())
