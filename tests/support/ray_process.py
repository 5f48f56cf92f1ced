"""The process of a Ray cluster: it executes the commands of `ray_cluster.RayCluster`.

Each line of standard input is a JSON list, a command and its arguments; each line of standard output is its answer.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import urllib.request
from collections.abc import Iterator
from typing import Any

import ray
from ray import serve
from ray.cluster_utils import Cluster
from ray.serve.config import gRPCOptions
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema

from tests.support.processes import descendants

SERVICER = "reward_server.v1.reward_pb2_grpc.add_RewardServiceServicer_to_server"
# The cores are promised, not there: what the tests start is small.
NODE: dict[str, Any] = {"num_cpus": 8, "object_store_memory": 80 << 20}


def main(port: int, http_port: int) -> None:
    """Runs the cluster until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # Ray writes to standard output
    with _cluster() as cluster:
        commands = Commands(cluster, port, http_port)
        print("null", file=answers, flush=True)
        for line in sys.stdin:
            name, *arguments = json.loads(line)
            print(json.dumps(getattr(commands, name)(*arguments)), file=answers, flush=True)


@contextlib.contextmanager
def _cluster() -> Iterator[Cluster]:
    cluster = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    try:
        ray.init(cluster.address, log_to_driver=False)
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


class Commands:
    def __init__(self, cluster: Cluster, port: int, http_port: int):
        self._cluster = cluster
        self._worker: Any = None
        serve.start(
            proxy_location="HeadOnly",
            http_options={"host": "127.0.0.1", "port": http_port},
            grpc_options=gRPCOptions(port=port, grpc_servicer_functions=[SERVICER]),
        )

    def deploy(self, applications: list[dict[str, Any]]) -> None:
        _get_global_client().deploy_apps(ServeDeploySchema(applications=applications))

    def statuses(self) -> dict[str, Any]:
        return {name: _status(status) for name, status in serve.status().applications.items()}

    def replicas(self, application: str) -> list[dict[str, Any]]:
        deployments = _get_global_client().get_serve_details()["applications"][application]["deployments"]
        return [
            {"pid": replica["pid"], "node": replica["node_id"], "deployment": name}
            for name, deployment in deployments.items()
            for replica in deployment["replicas"]
        ]

    def metrics(self) -> str:
        nodes = [node for node in ray.nodes() if node["Alive"]]
        urls = [f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics" for node in nodes]
        pages = [urllib.request.urlopen(url, timeout=10).read().decode() for url in urls]
        return "\n".join(line for page in pages for line in page.splitlines() if line.startswith("ray_reward_server"))

    def add_worker_node(self) -> str:
        self._worker = self._cluster.add_node(**NODE)
        return self._worker.node_id

    def kill_worker_node(self) -> None:
        own = [one.process.pid for processes in self._worker.all_processes.values() for one in processes]
        for pid in set(own).union(*map(descendants, own)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._cluster.remove_node(self._worker, allow_graceful=False)


def _status(status: Any) -> dict[str, Any]:
    deployments = {name: dict(one.replica_states) for name, one in status.deployments.items()}
    messages = [status.message, *(one.message for one in status.deployments.values())]
    return {"status": status.status, "message": "\n".join(filter(None, messages)), "deployments": deployments}


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
