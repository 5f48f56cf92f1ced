"""The `reward-server` command: its subcommands, their arguments and its exit codes.

Owns the parser. `serve`, `commands` (check and score), `health`, `evaluate` (test, attack,
rescore), `view` and `schema` do the work.
Bad input ends with one line `error: …` and exit code 1; a traceback is shown only of the user's own code.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from reward_server import __version__
from reward_server.cli import commands, evaluate, health, serve, view
from reward_server.cli.arguments import add_config, add_source, credentials, read_config, seconds
from reward_server.cli.schema import config_schema
from reward_server.client import RewardClient
from reward_server.errors import RewardServerError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    args = _parser().parse_args(arguments)
    try:
        return args.command(args)
    except RewardServerError as error:
        print(f"error: {error}", file=sys.stderr)
    except BrokenPipeError:  # the reader of our output has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    except KeyboardInterrupt:
        return 130
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="reward-server",
        description="A gRPC service that scores groups of completions, and tools for its configuration.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    subcommands = parser.add_subparsers(required=True, metavar="command")
    serve.add_command(subcommands)
    _add_check(subcommands)
    _add_score(subcommands)
    health.add_command(subcommands)
    _add_schema(subcommands)
    evaluate.add_commands(subcommands)
    view.add_commands(subcommands)
    return parser


def _add_check(subcommands: Any) -> None:
    check = subcommands.add_parser(
        "check", help="load a configuration, score a sample and report what is wrong", allow_abbrev=False
    )
    check.set_defaults(command=lambda args: commands.check(read_config(args.config), args.sample))
    add_config(check)
    check.add_argument("--sample", metavar="FILE", help="JSON or JSONL; its first row is the group to score")


def _add_score(subcommands: Any) -> None:
    score = subcommands.add_parser(
        "score", help="score groups from the command line or from a file", allow_abbrev=False
    )
    score.set_defaults(command=_score)
    add_source(score)
    score.add_argument("--prompt", default="", help="text of the prompt")
    score.add_argument("--completion", action="append", default=[], help="text of a completion, repeatable")
    score.add_argument(
        "--column", action="append", default=[], metavar="NAME=JSON", help="a column of the dataset, repeatable"
    )
    score.add_argument(
        "--scorer", action="append", default=[], metavar="NAME", help="score only with this scorer, repeatable"
    )
    score.add_argument(
        "--input",
        metavar="FILE",
        help='JSONL with rows of {"prompt": …, "completions": […], columns…}; - reads standard input',
    )
    score.add_argument("--json", action="store_true", help="print one JSON object per group instead of a table")
    score.add_argument("--timeout-s", type=seconds, default=300.0, metavar="S", help="time limit for all groups (300)")


def _score(args: argparse.Namespace) -> int:
    groups = commands.groups_of(args.prompt, args.completion, args.column, args.input, args.scorer)
    source = RewardClient(args.endpoint, **credentials(args)) if args.endpoint else read_config(args.config)
    return commands.score(source, groups, as_json=args.json, timeout_s=args.timeout_s)


def _add_schema(subcommands: Any) -> None:
    schema = subcommands.add_parser(
        "schema",
        help="print the JSON Schema of a configuration, for editors",
        description="Prints the JSON Schema of a configuration. Save it, and begin a configuration with the line "
        "`# yaml-language-server: $schema=reward-server.schema.json`: an editor then completes and checks its keys.",
        allow_abbrev=False,
    )
    schema.set_defaults(command=_print_schema)


def _print_schema(_: argparse.Namespace) -> int:
    print(json.dumps(config_schema(), indent=2))
    return 0
