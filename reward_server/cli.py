"""`reward-server serve`, `check` and `score`: the server from the shell.

Owns arguments, exit codes and what a person reads. Bad input ends in one line `error: …` and exit code 1; a traceback
is only ever the user's own code's.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from reward_server import __version__
from reward_server.config import ServerConfig, config_from_text, load_config
from reward_server.errors import RewardServerError
from reward_server.server import RewardServer, run
from reward_server.types import ScorerInfo


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
    return parser


def _add_serve(commands: Any) -> None:
    serve = commands.add_parser("serve", help="serve the scorers of a configuration", allow_abbrev=False)
    serve.set_defaults(command=_serve)
    _add_config(serve, required=True)
    serve.add_argument(
        "--listen", action="append", metavar="ADDRESS", help="host:port or unix:path, repeatable; replaces the file's"
    )
    serve.add_argument("--drain-grace-s", type=float, metavar="S", help="seconds that calls get to finish at the end")
    serve.add_argument("--insecure", action="store_true", help="listen beyond this machine without credentials")
    serve.add_argument("--log-level", choices=("debug", "info", "warning", "error"), default="info")
    serve.add_argument("--exit-with-parent", type=int, metavar="PID", help="end when this process does")
    serve.add_argument("--ready-fd", type=int, metavar="FD", help="write one JSON line here: endpoints, or the error")


def _add_config(parser: argparse.ArgumentParser, required: bool) -> None:
    parser.add_argument("--config", metavar="FILE", required=required, help="YAML or JSON; - reads standard input")


def read_config(source: str) -> ServerConfig:
    """The configuration in a file, or on standard input for `-`. Raises ConfigError."""
    if source == "-":
        return config_from_text(sys.stdin.read(), Path.cwd(), source="configuration")
    return load_config(source)


# --------------------------------------------------------------------------------------------------------------- serve


def _serve(args: argparse.Namespace) -> int:
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.WARNING)
    logging.getLogger("reward_server").setLevel(args.log_level.upper())
    try:
        config = _with_arguments(read_config(args.config), args)
        return run(config, lambda server: _announce(server, args.ready_fd), args.exit_with_parent)
    except RewardServerError as error:
        if args.ready_fd is None:
            raise
        _write_line(args.ready_fd, {"error": str(error), "type": type(error).__name__})
        return 1


def _with_arguments(config: ServerConfig, args: argparse.Namespace) -> ServerConfig:
    given = {
        "listen": tuple(args.listen) if args.listen else None,
        "drain_grace_s": args.drain_grace_s,
        "allow_insecure": args.insecure or None,
    }
    return config.model_copy(update={name: value for name, value in given.items() if value is not None})


def _announce(server: RewardServer, ready_fd: int | None) -> None:
    if ready_fd is not None:
        _write_line(ready_fd, {"endpoints": server.endpoints, "config_digest": server.info.config_digest})
        return
    print(f"serving {len(server.info.scorers)} scorers, configuration {server.info.config_digest[:12]}")
    for info in server.info.scorers:
        print(f"  {describe(info)}")
    print(f"on {', '.join(server.endpoints)}", flush=True)


def describe(info: ScorerInfo) -> str:
    """One scorer in one line."""
    traits = ["deterministic"] * info.deterministic + ["sees whole groups"] * info.group_aware
    needs = [f"needs {', '.join(info.required_columns)}"] * bool(info.required_columns)
    return (
        f"{info.name}: {'; '.join([f'{info.kind}, version {info.version}, weight {info.weight:g}', *traits, *needs])}"
    )


def _write_line(fd: int, value: Any) -> None:
    with open(fd, "w") as file:
        file.write(json.dumps(value) + "\n")


def _run() -> NoReturn:
    sys.exit(main())


if __name__ == "__main__":
    _run()
