"""What the reward service adds to a bare gRPC call: groups a second and latency, beside an echo and a JSON route.

    python tests/benchmarks/service_overhead.py [--seconds 0.3] [--rounds 9]

Every target is a process of its own and gets the same group of 8 × 1,000 characters: our server with a trivial async
scorer, a bare grpc.aio server that parses the same request and answers the same response, and a FastAPI/uvicorn route
that takes and gives the same as JSON. They take turns in many short rounds, so that a busy machine slows all of them.
The ratio is the time a group over the bare echo's on the same transport, the median over the rounds; the aim is 1.25.
"cpu" is the processor time that the server's process spent on a group, in µs, and its ratio: what is left when the
machine is busy.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
import uvloop

from reward_server import wire
from reward_server.launch import launch_server
from reward_server.scorers.base import ExecutorKind, Result, Scorer
from reward_server.types import Completion, Group, GroupScores, Score, ScorerScores, Status
from reward_server.v1 import reward_pb2 as pb
from reward_server.v1 import reward_pb2_grpc as pb_grpc

GROUP = Group("p" * 100, tuple(Completion(chr(97 + index) * 1000) for index in range(8)), run_id="bench", group_id="g")
IN_FLIGHT = (1, 16, 64)
AIM = 1.25

Call = Callable[[int], Awaitable[None]]


class Trivial(Scorer):
    """Scores 0.5 on the event loop."""

    place = ExecutorKind.LOOP

    async def score(self, group: Group) -> Result:
        return Result((Score(Status.OK, 0.5),) * len(group))


# ------------------------------------------------------------------------------------------------------- other servers


async def serve_echo(address: str) -> None:
    """Parses the request, answers a ready response, says where it listens."""
    scores = (Score(Status.OK, 0.5),) * len(GROUP)
    answer = wire.encode_scores(GroupScores("g", (ScorerScores("trivial", "1", 1.0, scores),), "d" * 64, 0.0, 0.001))

    class Echo(pb_grpc.RewardServiceServicer):
        async def ScoreGroup(self, request: pb.ScoreGroupRequest, context: Any) -> pb.ScoreGroupResponse:
            answer.group_id = request.group_id
            return answer

        async def ScoreGroups(self, request: pb.ScoreGroupsRequest, context: Any) -> Any:
            answers = pb.ScoreGroupsResponse()
            for index, call in enumerate(request.calls):
                answer.group_id = call.group.group_id
                answers.answers.add(index=index, scores=answer)
            yield answers

    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    pb_grpc.add_RewardServiceServicer_to_server(Echo(), server)
    port = server.add_insecure_port(address)
    await server.start()
    print(address if address.startswith("unix:") else f"127.0.0.1:{port}", flush=True)
    await server.wait_for_termination()


def serve_json() -> None:
    """The same job as a FastAPI route."""
    import uvicorn  # noqa: PLC0415 - only this process pays for it
    from fastapi import FastAPI, Request  # noqa: PLC0415
    from fastapi.responses import JSONResponse  # noqa: PLC0415

    app = FastAPI()

    async def route(request: Request) -> JSONResponse:
        group = await request.json()
        scores = [{"status": "OK", "value": 0.5} for _ in group["completions"]]
        scorer = {"name": "trivial", "version": "1", "weight": 1.0, "scores": scores}
        return JSONResponse({"group_id": group["group_id"], "scorers": [scorer], "config_digest": "d" * 64})

    # Here FastAPI could not resolve the annotations of a local function.
    route.__annotations__ = {"request": Request, "return": JSONResponse}
    app.post("/score", response_model=None)(route)
    listener = socket.create_server(("127.0.0.1", 0))
    print(f"127.0.0.1:{listener.getsockname()[1]}", flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False, timeout_keep_alive=300)).run(
        sockets=[listener]
    )


@contextmanager
def child(*arguments: str) -> Iterator[tuple[str, int]]:
    """Another server of this file in a process of its own; gives its endpoint and pid."""
    command = [sys.executable, __file__, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip(), process.pid
        finally:
            process.kill()


@contextmanager
def service(listen: str | None) -> Iterator[tuple[str, int]]:
    """Our server, likewise."""
    config = {"scorers": [{"type": f"{__file__}:Trivial", "name": "trivial"}]}
    with launch_server(config, listen=listen) as server:
        yield server.endpoint, server.pid


# ------------------------------------------------------------------------------------------------------------- clients


def grpc_call(endpoint: str, stack: list[grpc.aio.Channel]) -> Call:
    channel = grpc.aio.insecure_channel(endpoint, options=[("grpc.use_local_subchannel_pool", 1)])
    stack.append(channel)
    stub = pb_grpc.RewardServiceStub(channel)
    requests: dict[int, pb.ScoreGroupRequest] = {}

    async def call(slot: int) -> None:
        # Each slot a group of its own: the server would score equal groups that are in flight together only once.
        request = requests.get(slot)
        if request is None:
            request = requests[slot] = wire.encode_group(GROUP)
            request.group_id = f"g{slot}"
        response = await stub.ScoreGroup(request, timeout=30)
        assert len(response.scorers[0].scores) == len(GROUP)

    return call


def http_call(endpoint: str, group: Group = GROUP) -> Call:
    """HTTP/1.1 with a kept connection a slot: what a careful client would do, without a client library's own time."""
    host, _, port = endpoint.partition(":")
    body = {"prompt": group.prompt, "completions": group.contents(), "run_id": "bench", "group_id": "g"}
    lines: dict[int, tuple[asyncio.StreamReader, asyncio.StreamWriter]] = {}

    async def call(slot: int) -> None:
        if slot not in lines:
            lines[slot] = await asyncio.open_connection(host, int(port))
        reader, writer = lines[slot]
        content = json.dumps(body).encode()
        head = (
            f"POST /score HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\ncontent-length: {len(content)}"
        )
        writer.write(head.encode() + b"\r\n\r\n" + content)
        header = (await reader.readuntil(b"\r\n\r\n")).lower()
        assert header.startswith(b"http/1.1 200"), header
        length = int(header.partition(b"content-length: ")[2].partition(b"\r\n")[0])
        answer = json.loads(await reader.readexactly(length))
        assert len(answer["scorers"][0]["scores"]) == len(group)

    return call


# ------------------------------------------------------------------------------------------------------------- measure


@dataclass(frozen=True)
class Target:
    """A server under measurement."""

    name: str
    call: Call
    pid: int


@dataclass(frozen=True)
class Turn:
    """What one target got done in its turn of a round."""

    latencies_s: list[float]
    wall_s: float
    cpu_s: float

    @property
    def per_group_s(self) -> float:
        return self.wall_s / len(self.latencies_s)


def cpu_s(pid: int) -> float:
    """Processor seconds of a process so far (proc(5): utime and stime are fields 14 and 15)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def take_turn(target: Target, in_flight: int, seconds: float) -> Turn:
    """`in_flight` loops that call one after another."""
    latencies: list[float] = []
    cpu_before, began = cpu_s(target.pid), time.perf_counter()

    async def loop(slot: int) -> None:
        while (sent := time.perf_counter()) < began + seconds:
            await target.call(slot)
            latencies.append(time.perf_counter() - sent)

    await asyncio.gather(*(loop(slot) for slot in range(in_flight)))
    return Turn(latencies, time.perf_counter() - began, cpu_s(target.pid) - cpu_before)


Results = dict[tuple[str, int], list[Turn]]


async def compare(targets: list[Target], rounds: int, seconds: float) -> Results:
    """Turns by target and calls in flight, one a round."""
    results: Results = {}
    for target in targets:
        await take_turn(target, max(IN_FLIGHT), 0.3)  # opens connections
    for in_flight in IN_FLIGHT:
        for _ in range(rounds):
            for target in targets:
                results.setdefault((target.name, in_flight), []).append(await take_turn(target, in_flight, seconds))
    return results


def echo_of(name: str) -> str:
    """The bare echo on the target's transport."""
    return f"echo {name.rsplit(maxsplit=1)[-1]}"


def ratio(results: Results, name: str, in_flight: int) -> float:
    """The target's time a group over the bare echo's of the same round, the median over rounds."""
    pairs = zip(results[name, in_flight], results[echo_of(name), in_flight], strict=True)
    return statistics.median(turn.per_group_s / echo.per_group_s for turn, echo in pairs)


def cpu_us(results: Results, name: str, in_flight: int) -> float:
    """Processor time a group, over all rounds, since a clock tick is long for one."""
    turns = results[name, in_flight]
    return 1e6 * sum(turn.cpu_s for turn in turns) / sum(len(turn.latencies_s) for turn in turns)


def cpu_ratio(results: Results, name: str, in_flight: int) -> float:
    return cpu_us(results, name, in_flight) / cpu_us(results, echo_of(name), in_flight)


def line(results: Results, name: str, in_flight: int) -> str:
    turns = results[name, in_flight]
    latencies = sorted(latency for turn in turns for latency in turn.latencies_s)
    p50, p99 = (1000 * latencies[int(q * len(latencies))] for q in (0.5, 0.99))
    rate = statistics.median(1 / turn.per_group_s for turn in turns)
    of = (results, name, in_flight)
    shown = f"{ratio(*of):10.2f}{cpu_us(*of):10.0f}{cpu_ratio(*of):10.2f}"
    return f"{name:14}{in_flight:10}{rate:12.0f}{p50:10.2f}{p99:10.2f}{shown}"


def report(results: Results, targets: list[Target]) -> None:
    print(
        f"{'':14}{'in flight':>10}{'groups/s':>12}{'p50 ms':>10}{'p99 ms':>10}{'ratio':>10}{'cpu µs':>10}{'ratio':>10}"
    )
    for in_flight in IN_FLIGHT:
        for target in targets:
            print(line(results, target.name, in_flight))
    cells = [(f"service {transport}", n) for transport in ("tcp", "unix") for n in IN_FLIGHT]
    ours, cpu = ([of(results, *cell) for cell in cells] for of in (ratio, cpu_ratio))
    print(f"\nThe service takes {min(ours):.2f} to {max(ours):.2f} × the bare echo's time a group,")
    print(f"and {min(cpu):.2f} to {max(cpu):.2f} × its processor time (aim: {AIM}).")


async def run(rounds: int, seconds: float) -> None:
    channels: list[grpc.aio.Channel] = []
    with ExitStack() as stack, tempfile.TemporaryDirectory(prefix="bench-") as folder:
        servers = {
            "echo tcp": child("--echo", "127.0.0.1:0"),
            "service tcp": service("127.0.0.1:0"),
            "echo unix": child("--echo", f"unix:{folder}/echo"),
            "service unix": service(None),
            "fastapi tcp": child("--json"),
        }
        targets = []
        for name, server in servers.items():
            endpoint, pid = stack.enter_context(server)
            call = http_call(endpoint) if name.startswith("fastapi") else grpc_call(endpoint, channels)
            targets.append(Target(name, call, pid))
        results = await compare(targets, rounds, seconds)
        for channel in channels:
            await channel.close()
    report(results, targets)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=0.3, help="of each turn")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--echo", metavar="ADDRESS", help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.json:
        serve_json()
    elif args.echo:
        uvloop.run(serve_echo(args.echo))
    else:
        uvloop.run(run(args.rounds, args.seconds))


if __name__ == "__main__":
    main()
