"""`reward-server serve`, `check` and `score`: the server from the shell.

Owns the arguments, the exit codes and what `serve` says; `shell` has what the other two do. Bad input ends in one line
`error: …` and exit code 1; a traceback is
only ever the user's own code's.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reward_server import __version__
from reward_server.cli import commands as shell
from reward_server.cli import evaluate, view
from reward_server.client import ClientTLS, RewardClient
from reward_server.config import ServerConfig, config_from_text, load_config
from reward_server.errors import RewardServerError
from reward_server.observability import logs
from reward_server.serving.fleet import Fleet
from reward_server.serving.server import Life, RewardServer, run


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code."""
    args = _parser().parse_args(arguments)
    try:
        return args.command(args)
    except RewardServerError as error:
        print(f"error: {error}", file=sys.stderr)
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    except KeyboardInterrupt:
        return 130
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="reward-server", description="Scores groups of completions over gRPC.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="command")
    _add_serve(commands)
    _add_check(commands)
    _add_score(commands)
    evaluate.add_commands(commands)
    view.add_commands(commands)
    return parser


def _add_serve(commands: Any) -> None:
    serve = commands.add_parser("serve", help="serve the scorers of a configuration", allow_abbrev=False)
    serve.set_defaults(command=_serve)
    _add_config(serve, required=True)
    serve.add_argument(
        "--listen", action="append", metavar="ADDRESS", help="host:port or unix:path, repeatable; replaces the file's"
    )
    serve.add_argument("--processes", type=_positive, metavar="N", help="server processes that share the addresses")
    serve.add_argument("--drain-grace-s", type=float, metavar="S", help="seconds that calls get to finish at the end")
    serve.add_argument("--insecure", action="store_true", help="listen beyond this machine without TLS or credentials")
    serve.add_argument(
        "--sample", metavar="FILE", help="as for check: what a configuration is tested with that is loaded on SIGHUP"
    )
    serve.add_argument("--log-level", choices=("debug", "info", "warning", "error"), default="info")
    serve.add_argument(
        "--log-format", choices=logs.FORMATS, default="text", help="json: an object a line, with the call's ids"
    )
    serve.add_argument("--exit-with-parent", type=int, metavar="PID", help="end when this process does")
    serve.add_argument("--ready-fd", type=int, metavar="FD", help="write one JSON line here: endpoints, or the error")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 1")
    return int(text)


def _add_check(commands: Any) -> None:
    check = commands.add_parser(
        "check", help="load everything, score a sample, say what is wrong by field", allow_abbrev=False
    )
    check.set_defaults(command=lambda args: shell.check(read_config(args.config), args.sample))
    _add_config(check, required=True)
    check.add_argument("--sample", metavar="FILE", help="JSON or JSONL; its first row is the sample group")


def _add_score(commands: Any) -> None:
    score = commands.add_parser("score", help="score groups from the shell or a JSONL file", allow_abbrev=False)
    score.set_defaults(command=_score)
    where = score.add_mutually_exclusive_group(required=True)
    _add_config(where, required=False)
    where.add_argument("--endpoint", metavar="E", help="host:port or unix:path of a running server")
    score.add_argument(
        "--token-file", metavar="FILE", help="holds the token for the endpoint; else REWARD_TOKEN, if it is set"
    )
    score.add_argument(
        "--tls-ca", metavar="FILE", help="PEM certificates that the endpoint's must be signed by; speaks TLS"
    )
    score.add_argument("--prompt", default="", help="text of the prompt")
    score.add_argument("--completion", action="append", default=[], help="text of a completion, repeatable")
    score.add_argument(
        "--column", action="append", default=[], metavar="NAME=JSON", help="a dataset column, repeatable"
    )
    score.add_argument("--scorer", action="append", default=[], metavar="NAME", help="score with this one; repeatable")
    score.add_argument(
        "--input", metavar="FILE", help='JSONL, rows of {"prompt": …, "completions": […], columns…}; - for stdin'
    )
    score.add_argument("--json", action="store_true", help="a JSON object a group instead of a table")
    score.add_argument("--timeout-s", type=float, default=300.0, metavar="S", help="seconds to wait for all groups")


def _add_config(parser: Any, required: bool) -> None:
    parser.add_argument("--config", metavar="FILE", required=required, help="YAML or JSON; - reads standard input")


def read_config(source: str) -> ServerConfig:
    """The configuration in a file, or on standard input for `-`. Raises ConfigError."""
    if source == "-":
        return config_from_text(sys.stdin.read(), Path.cwd(), source="configuration")
    return load_config(source)


def _score(args: argparse.Namespace) -> int:
    groups = shell.groups_of(args.prompt, args.completion, args.column, args.input, args.scorer)
    source = _client(args) if args.endpoint else read_config(args.config)
    return shell.score(source, groups, as_json=args.json, timeout_s=args.timeout_s)


def _client(args: argparse.Namespace) -> RewardClient:
    tls = ClientTLS(ca_file=args.tls_ca) if args.tls_ca else None
    return RewardClient(args.endpoint, token_file=args.token_file, tls=tls)


# --------------------------------------------------------------------------------------------------------------- serve


def _serve(args: argparse.Namespace) -> int:
    logs.set_up(args.log_format, args.log_level)
    try:
        config = _with_arguments(read_config(args.config), args)
        sample = shell.sample_of_file(args.sample) if args.sample else None
        reread = None if args.config == "-" else lambda: _with_arguments(read_config(args.config), args)

        def make() -> Life:
            return Fleet(config, sample, args.log_format) if config.processes > 1 else RewardServer(config, sample)

        return run(make, lambda server: _announce(server, args.ready_fd), args.exit_with_parent, reread)
    except RewardServerError as error:
        if args.ready_fd is None:
            raise
        _write_line(args.ready_fd, {"error": str(error), "type": type(error).__name__})
        return 1


def _with_arguments(config: ServerConfig, args: argparse.Namespace) -> ServerConfig:
    given = {
        "listen": tuple(args.listen) if args.listen else None,
        "processes": args.processes,
        "drain_grace_s": args.drain_grace_s,
        "allow_insecure": args.insecure or None,
    }
    return config.model_copy(update={name: value for name, value in given.items() if value is not None})


def _announce(server: Life, ready_fd: int | None) -> None:
    if ready_fd is not None:
        ready = {"endpoints": server.endpoints, "config_digest": server.info.config_digest}
        _write_line(ready_fd, ready | ({"metrics": server.metrics_url} if server.metrics_url else {}))
        return
    print(f"serving {len(server.info.scorers)} scorers, configuration {server.info.config_digest[:12]}")
    for info in server.info.scorers:
        print(f"  {shell.describe(info)}")
    if server.metrics_url:
        print(f"metrics at {server.metrics_url}")
    print(f"on {', '.join(server.endpoints)}", flush=True)


def _write_line(fd: int, value: Any) -> None:
    with open(fd, "w") as file:
        file.write(json.dumps(value) + "\n")
