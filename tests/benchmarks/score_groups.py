"""What several groups in one call save: time and processor time a group, beside unary calls and a FastAPI JSON route.

    python tests/benchmarks/score_groups.py [--seconds 0.3] [--rounds 7]

A batch of 16 or 64 groups is sent at once, as a rank's groups of a step are, and the next one when all are scored.
Every server is a process of its own with the same job: our server with a trivial async scorer, a bare grpc.aio server,
and a FastAPI/uvicorn route. They take turns in short rounds, so that a busy machine slows all of them. The first rows
of a server are raw stubs: unary calls, and ScoreGroups calls of 8, 16 and 64 groups. "RewardClient" is our client, by
`submit` and by `submit_all`. "µs a group" is wall time, the median over rounds; "server" and "client" are the two
processes' processor time; "unary ÷" is the time of unary calls of the same round, server and client over this row's.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import wait
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import grpc.aio
import uvloop

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT))

from reward_server import wire, wire_groups  # noqa: E402
from reward_server.client import RewardClient  # noqa: E402
from reward_server.types import Completion, Group  # noqa: E402
from reward_server.v1 import reward_pb2 as pb  # noqa: E402
from reward_server.v1 import reward_pb2_grpc as pb_grpc  # noqa: E402
from tests.benchmarks.service_overhead import child, cpu_s, http_call, service  # noqa: E402

BATCHES = (16, 64)
A_CALL = (8, 16, 64)
CHARACTERS = (100, 1_000, 8_000)
COMPLETIONS = 8

Batch = Callable[[], Awaitable[None]]


@dataclass(frozen=True)
class Way:
    """A way to have a batch scored, the server that does it, and the way that it is compared with."""

    name: str
    score: Batch
    pid: int
    unary: str


@dataclass(frozen=True)
class Turn:
    """Seconds a group in one turn: wall time, and the processor time of server and client."""

    wall_s: float
    server_s: float
    client_s: float


def group_of(characters: int, number: int) -> Group:
    completions = tuple(Completion(chr(97 + index) * characters) for index in range(COMPLETIONS))
    return Group("p" * 100, completions, run_id="bench", group_id=f"g{number}")


# ------------------------------------------------------------------------------------------------------------ the ways


def unary(stub: pb_grpc.RewardServiceStub, groups: list[Group]) -> Batch:
    requests = [wire.encode_group(group) for group in groups]

    async def score() -> None:
        answers = await asyncio.gather(*(stub.ScoreGroup(request, timeout=30) for request in requests))
        assert all(len(answer.scorers[0].scores) == COMPLETIONS for answer in answers)

    return score


def streams(stub: pb_grpc.RewardServiceStub, groups: list[Group], a_call: int) -> Batch:
    messages = [wire.encode_group(group) for group in groups]

    async def one(part: list[pb.ScoreGroupRequest]) -> None:
        request = wire_groups.encode_calls([(message.SerializeToString(), ()) for message in part])
        answers = 0
        async for response in stub.ScoreGroups(request, timeout=30):
            answers += sum(len(answer.scores.scorers[0].scores) == COMPLETIONS for answer in response.answers)
        assert answers == len(part)

    async def score() -> None:
        await asyncio.gather(*(one(messages[at : at + a_call]) for at in range(0, len(messages), a_call)))

    return score


def of_client(client: RewardClient, groups: list[Group], in_streams: bool) -> Batch:
    async def score() -> None:
        sent = client.submit_all(groups) if in_streams else [client.submit(group) for group in groups]
        wait(sent)  # nothing else runs in this loop
        assert all(len(future.result().scorers[0].scores) == COMPLETIONS for future in sent)

    return score


def http(endpoint: str, groups: list[Group]) -> Batch:
    call = http_call(endpoint, groups[0])

    async def score() -> None:
        await asyncio.gather(*(call(slot) for slot in range(len(groups))))

    return score


Server = tuple[str, int]
"""The endpoint and the process."""


class Ways:
    """The ways to score, and what they connect by."""

    def __init__(self, servers: dict[str, Server]):
        self._servers = servers
        options = [("grpc.use_local_subchannel_pool", 1)]
        self._channels = {
            name: grpc.aio.insecure_channel(endpoint, options=options)
            for name, (endpoint, _) in servers.items()
            if name != "FastAPI"
        }
        self._clients = {name: RewardClient(servers[name][0]) for name in self._channels}

    def of(self, groups: list[Group]) -> list[Way]:
        made: list[Way] = []
        for name, channel in self._channels.items():
            stub, client, pid = pb_grpc.RewardServiceStub(channel), self._clients[name], self._servers[name][1]
            calls = [count for count in A_CALL if count <= len(groups)]
            batches = {f"{name}, unary": unary(stub, groups)}
            batches |= {f"{name}, ScoreGroups of {count}": streams(stub, groups, count) for count in calls}
            made += [Way(title, batch, pid, f"{name}, unary") for title, batch in batches.items()]
            batches = {f"{name}, RewardClient.submit": of_client(client, groups, in_streams=False)}
            batches |= {f"{name}, RewardClient.submit_all": of_client(client, groups, in_streams=True)}
            made += [Way(title, batch, pid, f"{name}, RewardClient.submit") for title, batch in batches.items()]
        endpoint, pid = self._servers["FastAPI"]
        return [*made, Way("FastAPI", http(endpoint, groups), pid, "service, unary")]

    async def close(self) -> None:
        for channel in self._channels.values():
            await channel.close()
        for client in self._clients.values():
            client.close()


# ------------------------------------------------------------------------------------------------------------- measure


async def take_turn(way: Way, batch: int, seconds: float) -> Turn:
    """Batches, one after another."""
    before, own, began, scored = cpu_s(way.pid), time.process_time(), time.perf_counter(), 0
    while time.perf_counter() < began + seconds:
        await way.score()
        scored += batch
    took = (time.perf_counter() - began, cpu_s(way.pid) - before, time.process_time() - own)
    return Turn(*(each_s / scored for each_s in took))


async def measure(ways: list[Way], batch: int, rounds: int, seconds: float) -> dict[str, list[Turn]]:
    turns: dict[str, list[Turn]] = {way.name: [] for way in ways}
    for way in ways:
        await way.score()  # opens connections
    for _ in range(rounds):
        for way in ways:
            turns[way.name].append(await take_turn(way, batch, seconds))
    return turns


def report(title: str, ways: list[Way], turns: dict[str, list[Turn]]) -> None:
    print(f"\n{title:38}{'µs a group':>12}{'server µs':>11}{'client µs':>11}{'unary ÷':>10}")
    for way in ways:
        own = turns[way.name]
        wall, server, client = (
            1e6 * statistics.median(value)
            for value in zip(*((t.wall_s, t.server_s, t.client_s) for t in own), strict=True)
        )
        faster = statistics.median(u.wall_s / t.wall_s for u, t in zip(turns[way.unary], own, strict=True))
        print(f"{way.name:38}{wall:12.0f}{server:11.0f}{client:11.0f}{faster:10.2f}")


async def run(rounds: int, seconds: float) -> None:
    with ExitStack() as stack:
        servers = {
            "service": stack.enter_context(service("127.0.0.1:0")),
            "echo": stack.enter_context(child("--echo", "127.0.0.1:0")),
            "FastAPI": stack.enter_context(child("--json")),
        }
        ways = Ways(servers)
        for characters in CHARACTERS:
            for batch in BATCHES:
                own = ways.of([group_of(characters, number) for number in range(batch)])
                title = f"{batch} groups of {COMPLETIONS} × {characters:,} characters"
                report(title, own, await measure(own, batch, rounds, seconds))
        await ways.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=0.3, help="of each turn")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    uvloop.run(run(args.rounds, args.seconds))


if __name__ == "__main__":
    main()
