"""What Ray costs a group, and what its replicas add: groups a second, beside a plain server.

    python tests/benchmarks/ray_serve.py [--seconds 5] [--in-flight 1 16 64] [--default-proxy]

A cluster of one machine behind Ray's HAProxy, or behind its default proxy. A trivial scorer (length, 8 × 1,000
characters) shows the cost of a call: on a plain server, on Ray, and on Ray with one deployment a scorer. A scorer that
waits for 0.1 s and takes four groups at a time gives at most 40 groups a second from a replica, whatever the machine:
with 1, 2 and 4 replicas, it shows whether the calls find all of them.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from reward_server.client import RewardClient
from reward_server.launch import launch_server
from reward_server.types import Completion, Group
from tests.support.ray_cluster import RayCluster

LENGTH = {"type": "length", "name": "length", "max": 10_000}
WAITING = {
    "type": "function",
    "name": "waiting",
    "function": f"{Path(__file__).parents[1]}/support/misbehaving.py:make_waiting",
    "factory": True,
    "kwargs": {"seconds": 0.1},
    "place": "loop",
    "concurrency": 4,
}
REPLICAS = (1, 2, 4)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--in-flight", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--default-proxy", action="store_true")
    args = parser.parse_args(arguments)
    off = {"RAY_SERVE_ENABLE_HA_PROXY": "0", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "0"}
    print(f"{'':24}" + "".join(f"{f'{count} in flight':>14}" for count in args.in_flight) + "    groups/s")
    with launch_server({"scorers": [LENGTH]}, timeout_s=60) as server:
        report("length, plain server", server.endpoint, args)
    cluster = RayCluster(**(off if args.default_proxy else {}))
    try:
        measure(cluster, args)
    finally:
        cluster.close()


def measure(cluster: RayCluster, args: argparse.Namespace) -> None:
    """Deploys one application after another, and measures each."""
    deployed(cluster, application("trivial", LENGTH))
    report("length, Ray", cluster.endpoint, args)
    deployed(
        cluster, {**application("split"), "args": {"split": True, "config": {"scorers": [LENGTH]}}, "deployments": []}
    )
    report("length, Ray, split", cluster.endpoint, args)
    for replicas in REPLICAS:
        deployed(cluster, application(f"waiting-{replicas}", WAITING, replicas=replicas))
        report(f"waits 0.1 s, {replicas} replicas", cluster.endpoint, args)


def application(name: str, *scorers: dict[str, Any], replicas: int = 1) -> dict[str, Any]:
    deployment = {"name": "RewardServer", "num_replicas": replicas, "user_config": {"scorers": scorers}}
    return {
        "name": name,
        "route_prefix": f"/{name}",
        "import_path": "reward_server.ray:app",
        "deployments": [deployment],
    }


def deployed(cluster: RayCluster, one: dict[str, Any]) -> None:
    """Deploys an application, and waits until it is alone: those before it would take calls, too."""
    cluster.deploy(one)
    cluster.wait_for(one["name"])
    while len(cluster.statuses()) > 1:
        time.sleep(0.2)


def report(name: str, endpoint: str, args: argparse.Namespace) -> None:
    rates = [groups_per_s(endpoint, count, args.seconds) for count in args.in_flight]
    print(f"{name:24}" + "".join(f"{rate:14.0f}" for rate in rates), flush=True)


def groups_per_s(endpoint: str, in_flight: int, seconds: float) -> float:
    """The rate of so many callers that score one group after another, after a warm-up."""
    with RewardClient(endpoint, timeout_s=60) as client:
        run(client, in_flight, seconds / 5)
        return run(client, in_flight, seconds)


def run(client: RewardClient, in_flight: int, seconds: float) -> float:
    done = [0] * in_flight
    began = time.monotonic()

    def call(number: int) -> None:
        while time.monotonic() < began + seconds:
            client.score(group_of(f"{number} {done[number]}"))
            done[number] += 1

    callers = [threading.Thread(target=call, args=(number,)) for number in range(in_flight)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    return sum(done) / (time.monotonic() - began)


def group_of(name: str) -> Group:
    completions = tuple(Completion(chr(97 + index) * 1000) for index in range(8))
    return Group("p" * 100, completions, run_id="bench", group_id=name)


if __name__ == "__main__":
    main()
