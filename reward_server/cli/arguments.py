"""What several commands take: a configuration or an endpoint with its credentials, and checked numbers."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import Any

from reward_server.client import ClientTLS
from reward_server.config import ServerConfig, config_from_text, load_config


def add_config(parser: Any, required: bool = True) -> None:
    """Adds `--config`."""
    parser.add_argument("--config", metavar="FILE", required=required, help="YAML or JSON; - reads standard input")


def add_source(parser: Any) -> None:
    """Adds `--config` and `--endpoint`, one of which is needed, and the credentials for the endpoint."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--config", metavar="FILE", help="score in this process with this configuration; - reads standard input"
    )
    source.add_argument("--endpoint", metavar="E", help="ask a running server: host:port or unix:path")
    add_credentials(parser)


def add_credentials(parser: Any) -> None:
    """Adds the credentials for an endpoint: `--token-file` and `--tls-ca`."""
    parser.add_argument("--token-file", metavar="FILE", help="token for the endpoint; else REWARD_TOKEN, if it is set")
    parser.add_argument(
        "--tls-ca", metavar="FILE", help="connect with TLS; PEM certificates that the endpoint's must be signed by"
    )


def read_config(source: str) -> ServerConfig:
    """The configuration in a file, or on standard input for `-`. Raises ConfigError."""
    if source == "-":
        return config_from_text(sys.stdin.read(), Path.cwd(), source="configuration")
    return load_config(source)


def credentials(args: argparse.Namespace) -> dict[str, Any]:
    """The keywords of a client that the options of `add_source` give."""
    return {"token_file": args.token_file, "tls": ClientTLS(ca_file=args.tls_ca) if args.tls_ca else None}


def positive(text: str) -> int:
    """An integer of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 1")
    return int(text)


def seconds(text: str) -> float:
    """A positive, finite number of seconds."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number of seconds")
    return value
