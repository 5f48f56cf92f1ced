"""`reward-server serve`: serves the scorers of a configuration.

Owns the arguments of the command and what it prints. The life of the server is `serving.lifecycle`'s.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from reward_server.cli.arguments import add_config, positive, read_config
from reward_server.cli.commands import describe, sample_of_file
from reward_server.config import ServerConfig
from reward_server.errors import RewardServerError
from reward_server.observability import logs
from reward_server.serving.lifecycle import ManagedServer, run
from reward_server.serving.server import RewardServer
from reward_server.serving.supervisor import Supervisor


def add_command(subcommands: Any) -> None:
    """Adds `serve` to the parser of `reward-server`."""
    parser = subcommands.add_parser("serve", help="serve the scorers of a configuration", allow_abbrev=False)
    parser.set_defaults(command=_serve)
    add_config(parser)
    parser.add_argument(
        "--listen",
        action="append",
        metavar="ADDRESS",
        help="host:port or unix:path, repeatable; replaces the addresses of the configuration",
    )
    parser.add_argument("--processes", type=positive, metavar="N", help="server processes that share the addresses")
    parser.add_argument(
        "--drain-grace-s", type=float, metavar="S", help="seconds that calls get to finish when the server stops"
    )
    parser.add_argument(
        "--insecure", action="store_true", help="allow other machines to connect without TLS or credentials"
    )
    parser.add_argument(
        "--sample", metavar="FILE", help="JSON or JSONL; its first row tests each configuration that SIGHUP loads"
    )
    parser.add_argument("--log-level", choices=("debug", "info", "warning", "error"), default="info")
    parser.add_argument(
        "--log-format", choices=logs.FORMATS, default="text", help="json: one object per line, with the call's ids"
    )
    parser.add_argument("--exit-with-parent", type=int, metavar="PID", help="stop when the process PID ends")
    parser.add_argument(
        "--ready-fd", type=int, metavar="FD", help="write one JSON line to this file: the endpoints, or an error"
    )


def _serve(args: argparse.Namespace) -> int:
    logs.set_up(args.log_format, args.log_level)
    try:
        return _serve_config(_with_arguments(read_config(args.config), args), args)
    except RewardServerError as error:
        if args.ready_fd is None:
            raise
        _write_line(args.ready_fd, {"error": str(error), "type": type(error).__name__})
        return 1


def _serve_config(config: ServerConfig, args: argparse.Namespace) -> int:
    sample = sample_of_file(args.sample) if args.sample else None
    reread = None if args.config == "-" else lambda: _with_arguments(read_config(args.config), args)

    def make() -> ManagedServer:
        return Supervisor(config, sample, args.log_format) if config.processes > 1 else RewardServer(config, sample)

    return run(make, lambda server: _announce(server, args.ready_fd), args.exit_with_parent, reread)


def _with_arguments(config: ServerConfig, args: argparse.Namespace) -> ServerConfig:
    given = {
        "listen": tuple(args.listen) if args.listen else None,
        "processes": args.processes,
        "drain_grace_s": args.drain_grace_s,
        "allow_insecure": args.insecure or None,
    }
    return config.model_copy(update={name: value for name, value in given.items() if value is not None})


def _announce(server: ManagedServer, ready_fd: int | None) -> None:
    """Tells that the server takes calls: one JSON line for a program, or a few lines for a person."""
    if ready_fd is not None:
        ready = {"endpoints": server.endpoints, "config_digest": server.info.config_digest}
        _write_line(ready_fd, ready | ({"metrics": server.metrics_url} if server.metrics_url else {}))
        return
    print(f"serving {len(server.info.scorers)} scorers, configuration {server.info.config_digest[:12]}")
    for info in server.info.scorers:
        print(f"  {describe(info)}")
    if server.metrics_url:
        print(f"metrics at {server.metrics_url}")
    print(f"on {', '.join(server.endpoints)}", flush=True)


def _write_line(fd: int, value: Any) -> None:
    with open(fd, "w") as file:
        file.write(json.dumps(value) + "\n")
