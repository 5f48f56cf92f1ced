"""`reward-server test`, `attack` and `rescore`: their arguments, output and exit codes.

0: all is well; 1: a case failed, a hack earns above the bound, or an error; 2: the input cannot be understood.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from reward_server.cli.arguments import add_source, credentials, positive, read_config, seconds
from reward_server.cli.commands import rows_of
from reward_server.client import AsyncRewardClient
from reward_server.config import ServerConfig
from reward_server.errors import ConfigError, InvalidGroupError
from reward_server.evaluation import attack as attacks
from reward_server.evaluation import rescore as rescoring
from reward_server.evaluation.cases import Case, read_cases
from reward_server.evaluation.hacks import HACKS, Hack
from reward_server.evaluation.recorded import read_records
from reward_server.evaluation.report import lines_of, write_junit
from reward_server.evaluation.scoring import Scoring
from reward_server.evaluation.suite import Outcome, Report, run_cases
from reward_server.scorers.loading import did_you_mean, load_attribute

# How far scoring old completions stands back for a server on the same machine; its workers inherit it.
_BESIDE_A_SERVER = 10


def add_commands(commands: Any) -> None:
    """Adds the three to the parser of `reward-server`."""
    _add_test(commands)
    _add_attack(commands)
    _add_rescore(commands)


def _add_test(commands: Any) -> None:
    parser = commands.add_parser("test", help="run cases: what a reward must say of completions", allow_abbrev=False)
    parser.set_defaults(command=lambda args: _refusing(_test, args))
    parser.add_argument("cases", nargs="+", type=Path, metavar="CASES", help="YAML or JSONL files of cases")
    _add_source(parser)
    parser.add_argument("--repeat", type=positive, default=1, metavar="N", help="score each case N times")
    parser.add_argument("--junit", type=Path, metavar="FILE", help="write the results as JUnit XML too")


def _add_attack(commands: Any) -> None:
    parser = commands.add_parser("attack", help="score known reward hacks on rows of your data", allow_abbrev=False)
    parser.set_defaults(command=lambda args: _refusing(_attack, args))
    _add_source(parser)
    parser.add_argument("--data", required=True, metavar="ROWS", help='JSONL, rows of {"prompt": …, columns…}')
    parser.add_argument("--rows", type=positive, default=50, metavar="N", help="attack the first N rows (50)")
    parser.add_argument("--gold", metavar="COLUMN", help="column of the right answer (answer, if there is one)")
    parser.add_argument("--good", default="good", metavar="COLUMN", help="column of a good completion (good)")
    parser.add_argument("--wrong", default="wrong", metavar="COLUMN", help="column of a plain wrong completion (wrong)")
    parser.add_argument("--hack", action="append", metavar="NAME", help=f"only this, repeatable: {', '.join(HACKS)}")
    parser.add_argument("--also", action="append", default=[], metavar="FILE:ATTRIBUTE", help="a Hack of your own")
    parser.add_argument("--accept", action="append", default=[], metavar="NAME", help="do not fail because of this one")
    parser.add_argument(
        "--max-gain",
        type=float,
        default=attacks.Bounds.gain,
        metavar="SHARE",
        help="most that a hack may earn above the wrong answer, as a share of what the good one earns (0.25)",
    )
    parser.add_argument(
        "--max-rows",
        type=float,
        default=attacks.Bounds.rows,
        metavar="SHARE",
        help="share of rows in which a hack may earn more (0.05)",
    )


def _add_rescore(commands: Any) -> None:
    parser = commands.add_parser("rescore", help="score recorded completions again and compare", allow_abbrev=False)
    parser.set_defaults(command=lambda args: _refusing(_rescore, args))
    parser.add_argument("records", nargs="+", type=Path, metavar="RECORDS", help="record files of a reward server")
    _add_source(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="JSONL; an interrupted run goes on")


def _add_source(parser: Any) -> None:
    add_source(parser)
    parser.add_argument("--timeout-s", type=seconds, default=300.0, metavar="S", help="most that one group may take")


def _refusing(command: Callable[[argparse.Namespace], int], args: argparse.Namespace) -> int:
    """Runs a command; what it cannot understand ends with 2."""
    try:
        return command(args)
    except (InvalidGroupError, ConfigError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _source(args: argparse.Namespace) -> ServerConfig | AsyncRewardClient:
    if args.config:
        return read_config(args.config)
    return AsyncRewardClient(args.endpoint, **credentials(args))


# ---------------------------------------------------------------------------------------------------------------- test


def _test(args: argparse.Namespace) -> int:
    began = time.perf_counter()
    report = asyncio.run(_run_cases(args, read_cases(args.cases)))
    seconds = time.perf_counter() - began
    print("\n")
    print(*lines_of(report, seconds), sep="\n")
    if args.junit:
        write_junit(report, args.junit, seconds)
    return int(report.failed > 0)


async def _run_cases(args: argparse.Namespace, cases: list[Case]) -> Report:
    async with Scoring.of(_source(args), args.timeout_s) as scoring:
        return await run_cases(cases, scoring, args.repeat, _mark)


def _mark(outcome: Outcome) -> None:
    print("F" if outcome.problems else ".", end="", flush=True)


# -------------------------------------------------------------------------------------------------------------- attack


def _attack(args: argparse.Namespace) -> int:
    hacks = _hacks(args)
    targets = attacks.targets_of(list(rows_of(args.data))[: args.rows], args.gold, args.good, args.wrong)
    if not targets:
        raise InvalidGroupError(f"{args.data} holds no rows")
    found = asyncio.run(_run_attack(args, targets, hacks))
    print(*attacks.lines_of(found), sep="\n")
    if len(found.unfit) == len(targets):
        raise InvalidGroupError("in no row does the good completion earn more than the plain wrong one")
    return int(bool(found.marked))


async def _run_attack(args: argparse.Namespace, targets: list[attacks.Target], hacks: list[Hack]) -> attacks.Attack:
    bounds = attacks.Bounds(args.max_gain, args.max_rows)
    async with Scoring.of(_source(args), args.timeout_s) as scoring:
        return await attacks.attack(targets, hacks, scoring, bounds, args.accept)


def _hacks(args: argparse.Namespace) -> list[Hack]:
    own = [load_attribute(name, Path()) for name in args.also]
    for name, hack in zip(args.also, own, strict=True):
        if not isinstance(hack, Hack):
            raise ConfigError(f"--also {name} gives {hack!r:.80}, which is not a reward_server.evaluation.hacks.Hack")
    known = {**HACKS, **{hack.name: hack for hack in own}}
    for name in [*(args.hack or []), *args.accept]:
        if name not in known:
            hint = did_you_mean(name, known) or ";"
            raise ConfigError(f"there is no hack {name!r}{hint} known: {', '.join(known)}")
    return [hack for name, hack in known.items() if not args.hack or name in args.hack or hack in own]


# ------------------------------------------------------------------------------------------------------------- rescore


def _rescore(args: argparse.Namespace) -> int:
    old = list(read_records(args.records))
    if not old:
        raise InvalidGroupError(f"{', '.join(map(str, args.records))}: no group is recorded in it")
    if args.config:
        os.nice(_BESIDE_A_SERVER)
    new = asyncio.run(_run_rescore(args, old))
    print(*rescoring.lines_of(rescoring.compare(old, new)), sep="\n")
    return 0


async def _run_rescore(args: argparse.Namespace, old: Any) -> Any:
    async with Scoring.of(_source(args), args.timeout_s) as scoring:
        return await rescoring.rescore(old, scoring, args.out, _progress)


def _progress(done: int, of: int) -> None:
    """A bar on a terminal; elsewhere a line at the end."""
    if sys.stderr.isatty():
        filled = 40 * done // of
        end = "\n" if done == of else ""
        print(f"\r[{'#' * filled}{'.' * (40 - filled)}] {done}/{of} groups", end=end, file=sys.stderr, flush=True)
    elif done == of:
        print(f"{of} groups are scored", file=sys.stderr)
