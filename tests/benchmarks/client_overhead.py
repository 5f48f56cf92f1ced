"""What RewardClient adds to a bare stub: time and processor time a group, against the same server.

    python tests/benchmarks/client_overhead.py [--seconds 0.3] [--rounds 9]

The server is the bare echo of `service_overhead`, in a process of its own. Both clients send so many groups at once and
wait for all of their scores, as a training step does, and take turns in many short rounds. The stub sends a message
that is made already and leaves the answer as it comes; RewardClient writes the group into a message, reads the scores,
and stands ready to send it again. The ratio is the time a group over the stub's, the median over the rounds; the aim is
1.3.
"cpu" is the processor time of this process a group, in µs.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import grpc

sys.path.insert(0, str(Path(__file__).parents[2]))

from reward_server import wire
from reward_server.client import RewardClient
from reward_server.v1 import reward_pb2_grpc as pb_grpc
from tests.benchmarks.service_overhead import GROUP, child

AT_ONCE = (1, 16, 64)
AIM = 1.3

Send = Callable[[int], None]
"""Sends so many groups at once and waits for their scores."""
Turn = tuple[float, float]
"""Seconds, and processor seconds, a group."""


def with_stub(endpoint: str) -> Send:
    """The group's name is that which the echo answers, so that RewardClient takes the answer for its own."""
    channel = grpc.insecure_channel(endpoint, options=[("grpc.use_local_subchannel_pool", 1)])
    stub, request = pb_grpc.RewardServiceStub(channel), wire.encode_group(GROUP)

    def send(count: int) -> None:
        for call in [stub.ScoreGroup.future(request, timeout=30) for _ in range(count)]:
            assert len(call.result().scorers[0].scores) == len(GROUP)

    return send


def with_client(endpoint: str) -> Send:
    client = RewardClient(endpoint)

    def send(count: int) -> None:
        for scores in [client.submit(GROUP, timeout_s=30) for _ in range(count)]:
            assert len(scores.result().scorers[0].scores) == len(GROUP)

    return send


def take_turn(send: Send, at_once: int, seconds: float) -> Turn:
    groups, cpu, began = 0, time.process_time(), time.perf_counter()
    while time.perf_counter() < began + seconds:
        send(at_once)
        groups += at_once
    return (time.perf_counter() - began) / groups, (time.process_time() - cpu) / groups


def compare(stub: Send, client: Send, at_once: int, rounds: int, seconds: float) -> str:
    turns = [(take_turn(stub, at_once, seconds), take_turn(client, at_once, seconds)) for _ in range(rounds)]
    ratio, cpu_ratio = (statistics.median(ours[of] / bare[of] for bare, ours in turns) for of in (0, 1))
    (bare, bare_cpu), (ours, ours_cpu) = (
        [1e6 * statistics.median(turn[which][of] for turn in turns) for of in (0, 1)] for which in (0, 1)
    )
    return f"{at_once:8}{bare:10.0f}{ours:10.0f}{ratio:8.2f}{bare_cpu:14.0f}{ours_cpu:10.0f}{cpu_ratio:8.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=0.3, help="of each turn")
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    with child("--echo", "127.0.0.1:0") as (endpoint, _):
        stub, client = with_stub(endpoint), with_client(endpoint)
        for send in (stub, client):
            take_turn(send, max(AT_ONCE), 0.3)  # connects
        print(f"{'at once':>8}{'stub µs':>10}{'ours µs':>10}{'ratio':>8}{'stub cpu µs':>14}{'ours':>10}{'ratio':>8}")
        for at_once in AT_ONCE:
            print(compare(stub, client, at_once, args.rounds, args.seconds), flush=True)
    print(f"\nThe aim is {AIM} × the bare stub's time.")


if __name__ == "__main__":
    main()
