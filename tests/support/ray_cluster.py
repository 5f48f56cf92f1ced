"""A Ray cluster of two nodes on this machine, in a process of its own, with Serve behind Ray's HAProxy.

Nothing imports Ray here: `ray_process` does, in that process, which owns the cluster.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]

# As docs/ray.md advises.
ENVIRONMENT = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_metrics_report_interval_ms": "1000",
}
_ANSWER_TIMEOUT_S = 120


class RayCluster:
    """Commands a cluster."""

    def __init__(self, **environment: str):
        self.port = _free_port()
        self.endpoint = f"127.0.0.1:{self.port}"
        own = {**ENVIRONMENT, **apart(), **environment}
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the process
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.ray_process", str(self.port), str(_free_port())],
            env={**os.environ, "PYTHONPATH": path, **own},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        self._answer()

    def deploy(self, *applications: dict[str, Any]) -> None:
        """Applies a Serve file with these applications, and returns at once."""
        self._ask("deploy", list(applications))

    def statuses(self) -> dict[str, Any]:
        """Status, message and replica states, by application and deployment."""
        return self._ask("statuses")

    def wait_for(self, application: str, replicas: int | None = None, timeout_s: float = 90) -> None:
        """Returns when the application runs, and so many replicas of its first deployment, with nothing in between."""
        deadline = time.monotonic() + timeout_s
        while not _is_running(status := self.statuses().get(application), replicas):
            assert time.monotonic() < deadline, f"{application}: {status}\n{self.log()}"
            time.sleep(0.2)

    def replicas(self, application: str) -> list[dict[str, Any]]:
        """Process id and node of the replicas."""
        return self._ask("replicas", application)

    def metrics(self) -> str:
        """Our lines on Ray's pages of metrics, one page a node."""
        return self._ask("metrics")

    def kill_worker_node(self) -> None:
        """Kills the second node and all that runs on it, as kill -9 does."""
        self._ask("kill_worker_node")

    def add_worker_node(self) -> None:
        self._ask("add_worker_node")

    def log(self) -> str:
        self._log.seek(0)
        return self._log.read()[-4000:]

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(30)
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()
        self._log.close()

    def _ask(self, *command: Any) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"the cluster's process has ended:\n{self.log()}"
        return json.loads(line)


def apart() -> dict[str, str]:
    """The variables that keep a cluster apart from others on this machine and from the network, and let it end soon.

    Replicas of two clusters that listen on one port share its connections without an error: Ray (2.60) gives gRPC the
    option that forbids it as text, and gRPC ignores that. So it is with the proxy to which HAProxy hands calls while it
    knows of no replica. Without RAY_ADDRESS, `serve run` joins a cluster that runs on
    this machine already, whose Serve has its own gRPC port.

    And those that let it run while other tests keep the machine busy: two busy processes starve workers of niceness 15,
    which is Ray's default, and Ray kills a proxy that takes long to start or to answer.
    """
    first = _free_range()
    return {
        "RAY_ADDRESS": "local",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
        "RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT": str(first),
        "RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT": str(first + 100),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(_free_port()),
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(_free_port()),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(_free_port()),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(_free_port()),
        "RAY_worker_niceness": "0",
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
        "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "60",
        "RAY_SERVE_HAPROXY_STARTUP_TIMEOUT_S": "60",
    }


def _is_running(status: dict[str, Any] | None, replicas: int | None) -> bool:
    if status is None or status["status"] != "RUNNING":
        return False
    states = next(iter(status["deployments"].values()))
    return replicas is None or states == {"RUNNING": replicas}


def _free_range() -> int:
    """The first of a hundred ports that no other cluster uses.

    Not by the common random numbers: whatever seeds them makes two processes of tests choose the same ports.
    """
    while True:
        first = random.SystemRandom().randrange(20_000, 30_000, 100)
        with socket.socket() as found, contextlib.suppress(OSError):
            found.bind(("", first))
            return first


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]
