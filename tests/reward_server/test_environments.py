"""The oldest versions that pyproject.toml allows, in an environment of their own; this suite's own are the newest.

Owns the claim that the floors are true: there the client loads, scores, speaks TLS and retries, and a server serves.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from reward_server.client import ClientTLS, RewardClient
from reward_server.launch import launch_server
from tests.support.builders import make_group
from tests.support.certificates import Certificates
from tests.support.environments import ROOT, floors, python_with
from tests.support.peers import peer, scores_for
from tests.support.servers import function

pytestmark = pytest.mark.slow

TOKEN = "a-token-of-this-test"


@pytest.fixture(scope="module")
def oldest() -> Path:
    """The Python of an environment with the oldest versions."""
    return python_with([f"{name}=={number}" for name, number in floors().items()])


@pytest.fixture(scope="module")
def secured(
    tmp_path_factory: pytest.TempPathFactory, certificates: Certificates
) -> tuple[dict[str, Any], dict[str, str]]:
    """The configuration of a server that asks for TLS and a token, and what a client brings."""
    folder = tmp_path_factory.mktemp("tokens")
    (folder / "tokens").write_text(f"{TOKEN}\n")
    config = {"tls": certificates.server("good"), "tokens_file": str(folder / "tokens"), "listen": "127.0.0.1:0"}
    scorers = {"scorers": [function("even_length")], "workers": 1}
    return {**config, **scorers}, {"ca": certificates.path("ca.pem"), "token": TOKEN}


def run(python: Path, command: str, asked: dict[str, Any]) -> subprocess.Popen[str]:
    """Runs tests/support/elsewhere.py in an environment, which sees this checkout and nothing else of this one."""
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONHOME", "VIRTUAL_ENV")}
    return subprocess.Popen(
        [python, "-m", "tests.support.elsewhere", command, json.dumps(asked)],
        cwd=ROOT,
        env={**environment, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def client(python: Path, **asked: Any) -> dict[str, Any]:
    with run(python, "client", asked) as process:
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    found: dict[str, Any] = json.loads(out)
    return found


@contextmanager
def serving(python: Path, config: dict[str, Any]) -> Iterator[str]:
    with run(python, "serve", config) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.communicate(timeout=60)


def refuses_once() -> Callable[[Any, Any], Any]:
    """Answers of a peer that is unavailable for its first call."""
    calls: list[str] = []

    def answer(request: Any, context: Any) -> Any:
        calls.append(request.group_id)
        if len(calls) == 1:
            context.abort(grpc.StatusCode.UNAVAILABLE, "not yet")
        return scores_for(request, 2)

    return answer


def test_a_client_on_the_oldest_versions_scores_over_tls_with_a_token(
    oldest: Path, secured: tuple[dict[str, Any], dict[str, str]]
) -> None:
    config, credentials = secured
    server = launch_server(config, listen="127.0.0.1:0", timeout_s=60)
    try:
        found = client(oldest, endpoint=server.endpoint, **credentials)
    finally:
        server.stop()
    assert found["scores"] == found["async"] == [1.0, 0.0]
    assert found["rewards"] == [[1.0, 0.0]]
    assert found["loaded"] == []
    for name, number in found["versions"].items():
        assert number.startswith(floors()[name]), f"{name} {number} is not the oldest that is allowed"


def test_a_client_on_the_oldest_versions_tries_again(oldest: Path) -> None:
    with peer(refuses_once()) as (endpoint, servicer):
        found = client(oldest, endpoint=endpoint, unserved=True)
    assert found["scores"] == [0.0, 1.0]
    assert (found["retries"], servicer.calls) == (1, 3)


def test_a_server_on_the_oldest_versions_serves_clients_of_its_own_and_the_newest(
    oldest: Path, secured: tuple[dict[str, Any], dict[str, str]]
) -> None:
    config, credentials = secured
    with serving(oldest, config) as endpoint:
        tls = ClientTLS(ca_file=credentials["ca"])
        with RewardClient(endpoint, token=TOKEN, tls=tls, timeout_s=20) as newest:
            scores = newest.score(make_group(["ab", "abc"])).scorers[0].scores
        found = client(oldest, endpoint=endpoint, **credentials)
    assert [score.value for score in scores] == found["scores"] == [1.0, 0.0]
