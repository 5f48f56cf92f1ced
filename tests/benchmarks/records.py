"""What records cost a group, and how fast old records are scored again.

    python tests/benchmarks/records.py [--groups 400] [--rounds 5]

Servers with the same scorers (a regular expression and math, so that a group takes what such rewards take) run side by
side: two write nothing, one JSON lines and one Parquet, each of every group. They take turns in an order that changes,
so that a busy machine slows all of them; by how much the two that write nothing differ says how exact the others are.
The processor time is that of the server's own process, without its workers: what else the machine does changes it
little (Linux only). "rescore" is the rate of `reward-server rescore` without its start, beside the rate of asking the
server for the same groups.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from reward_server.client import AsyncRewardClient
from reward_server.config import config_from_mapping
from reward_server.evaluation.recorded import read_records
from reward_server.evaluation.rescore import rescore
from reward_server.evaluation.scoring import Scoring
from reward_server.launch import ServerProcess, launch_server
from reward_server.types import Completion, Group

IN_FLIGHT = 16
SCORERS = [
    {"type": "regex", "name": "boxed", "pattern": r"\\boxed\{[^{}]+\}"},
    {"type": "math", "name": "correct", "column": "answer"},
]
CONFIG = {"scorers": SCORERS, "workers": 2}


def groups(count: int, turn: int) -> list[Group]:
    """Eight completions of about 1,000 characters each."""
    text = "Let us work it out step by step. " * 29
    completions = tuple(Completion(f"{text} \\boxed{{{number}}}") for number in range(8))
    return [
        Group(f"Question {n}?", completions, {"answer": str(n % 9)}, run_id="bench", step=turn, group_id=f"{turn}/{n}")
        for n in range(count)
    ]


async def seconds_of(client: AsyncRewardClient, asked: list[Group]) -> float:
    waiting = iter(asked)

    async def ask() -> None:
        for group in waiting:
            await client.score(group)

    began = time.perf_counter()
    await asyncio.gather(*(ask() for _ in range(IN_FLIGHT)))
    return time.perf_counter() - began


def processor_s(pid: int) -> float:
    """Seconds that all threads of a process have computed."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def measure(
    servers: dict[str, ServerProcess], count: int, rounds: int
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """The seconds of a group in each round, and the processor seconds of a group over all of them."""
    clients = {name: AsyncRewardClient(server.endpoint) for name, server in servers.items()}
    found: dict[str, list[float]] = {name: [] for name in clients}
    began: dict[str, float] = {}
    for turn in range(rounds + 1):
        if turn == 1:  # the first warms up
            began = {name: processor_s(server.pid) for name, server in servers.items()}
        names = list(clients)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            seconds = await seconds_of(clients[name], groups(count, turn))
            if turn:
                found[name].append(seconds / count)
    for client in clients.values():
        await client.close()
    return found, {name: (processor_s(servers[name].pid) - at) / (count * rounds) for name, at in began.items()}


async def rescored(path: Path, out: Path) -> float:
    old = list(read_records([path]))
    async with Scoring.of(config_from_mapping(CONFIG)) as scoring:
        await rescore(old[:50], scoring, out.with_suffix(".warm"))
        began = time.perf_counter()
        await rescore(old, scoring, out)
        return (time.perf_counter() - began) / len(old)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        kinds: dict[str, dict[str, Any]] = {
            "no records": {},
            "none again": {},
            "jsonl": {"records": {"path": str(folder / "records.jsonl")}},
            "parquet": {"records": {"path": str(folder / "parts"), "format": "parquet"}},
        }
        servers = {
            kind: stack.enter_context(launch_server({**CONFIG, **more}, listen="127.0.0.1:0"))
            for kind, more in kinds.items()
        }
        found, processor = asyncio.run(measure(servers, args.groups, args.rounds))
        base = found["no records"]
        for kind, seconds in found.items():
            ratio = statistics.median(s / b for s, b in zip(seconds, base, strict=True))
            print(
                f"{kind:12} {1e3 * statistics.median(seconds):7.2f} ms a group   {ratio:.3f} x no records   "
                f"processor {1e3 * processor[kind]:.3f} ms"
            )
        again = asyncio.run(rescored(folder / "records.jsonl", folder / "out.jsonl"))
        print(f"{'rescore':12} {1e3 * again:7.2f} ms a group   {again / statistics.median(base):.3f} x no records")


if __name__ == "__main__":
    main()
