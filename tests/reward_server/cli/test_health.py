"""`reward-server health` says whether a server serves, by its exit code and in one line."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from reward_server.cli.main import main
from reward_server.client import RewardClient
from reward_server.launch import ServerProcess, launch_server
from tests.support.builders import make_group
from tests.support.certificates import Certificates
from tests.support.peers import peer
from tests.support.servers import slow_length

LENGTH = {"type": "length", "name": "short", "max": 3}

Serve = Callable[..., ServerProcess]
Said = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with launch_server({"scorers": [LENGTH], "workers": 1}, timeout_s=60) as running:
        yield running


def health(*arguments: str) -> int:
    return main(["health", *arguments])


def line_of(said: Said) -> str:
    """The one line that was said."""
    captured = said.readouterr()
    (line,) = (captured.out + captured.err).splitlines()
    return line


def test_a_serving_server_is_0_on_a_socket_and_on_a_port(server: ServerProcess, serve: Serve, capsys: Said) -> None:
    assert health("--endpoint", server.endpoint) == 0
    assert line_of(capsys) == f"{server.endpoint} serves"
    assert health("--endpoint", serve(LENGTH, listen="127.0.0.1:0").endpoint, "--wait", "5") == 0


def test_a_draining_server_is_1_and_then_a_dead_one_too(serve: Serve, capsys: Said) -> None:
    running = serve(slow_length(2.0))
    with RewardClient(running.endpoint) as client:
        client.connect(10)
        pending = client.submit(make_group(["a"]), timeout_s=20)
        time.sleep(0.3)
        os.kill(running.pid, signal.SIGTERM)
        time.sleep(0.3)
        assert health("--endpoint", running.endpoint) == 1
        assert "does not serve: it answers NOT_SERVING" in line_of(capsys)
        pending.result(20)
    running.stop()
    assert health("--endpoint", running.endpoint) == 1
    assert "does not serve: UNAVAILABLE" in line_of(capsys)


def test_wait_ends_when_a_server_that_starts_later_serves(tmp_path: Path) -> None:
    endpoint = f"unix:{tmp_path}/socket"
    command = [sys.executable, "-m", "reward_server.cli", "health", "--endpoint", endpoint, "--wait", "60"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as waiting:
        with launch_server({"scorers": [LENGTH], "workers": 1}, listen=endpoint, timeout_s=60):
            assert waiting.communicate(timeout=30)[0] == f"{endpoint} serves\n"
    assert waiting.returncode == 0


def test_wait_is_over_after_its_seconds(capsys: Said) -> None:
    with socket.socket() as held:  # bound and not listening: a connection is refused
        held.bind(("127.0.0.1", 0))
        began = time.monotonic()
        assert health("--endpoint", f"127.0.0.1:{held.getsockname()[1]}", "--wait", "0.5") == 1
    assert 0.4 < time.monotonic() - began < 5
    assert "does not serve within 0.5 s: UNAVAILABLE" in line_of(capsys)


def test_a_server_with_tls_and_tokens_is_asked_with_and_without_a_token(
    serve: Serve, certificates: Certificates, tmp_path: Path, capsys: Said
) -> None:
    (tmp_path / "tokens").write_text("secret-token\n")
    settings = {"tls": certificates.server("elsewhere"), "tokens_file": str(tmp_path / "tokens")}
    endpoint = serve(LENGTH, listen="127.0.0.1:0", **settings).endpoint
    trusting = ["--endpoint", endpoint, "--tls-ca", certificates.path("ca.pem"), "--tls-name", "elsewhere"]
    assert health(*trusting) == 0
    assert health(*trusting, "--token-file", str(tmp_path / "tokens")) == 0
    capsys.readouterr()
    assert health("--endpoint", endpoint, "--tls-ca", certificates.path("other.pem"), "--tls-name", "elsewhere") == 1
    assert "is not signed by the CA" in line_of(capsys)
    assert health("--endpoint", endpoint) == 1


def test_a_server_that_asks_for_certificates_is_asked_with_one(serve: Serve, certificates: Certificates) -> None:
    ca, own = certificates.path("ca.pem"), certificates.server("elsewhere")
    endpoint = serve(LENGTH, listen="127.0.0.1:0", tls={**certificates.server("good"), "client_ca": ca}).endpoint
    trusting = ["--endpoint", endpoint, "--tls-ca", ca]
    assert health(*trusting, "--tls-cert", own["cert"], "--tls-key", own["key"]) == 0
    assert health(*trusting) == 1


def test_a_server_without_a_health_service_is_told_so(capsys: Said) -> None:
    with peer() as (endpoint, _):
        assert health("--endpoint", endpoint) == 1
    assert "install grpo-plugin[server]" in line_of(capsys)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--endpoint", "no-port"], "no-port"),
        (["--endpoint", "x:1", "--token-file", "missing"], "cannot read missing"),
        (["--endpoint", "x:1", "--tls-ca", "missing.pem"], "missing.pem"),
        (["--endpoint", "x:1", "--tls-cert", "only.pem"], "give cert_file and key_file, or neither"),
        (["--endpoint", "unix:x", "--tls-ca", "missing.pem"], "not encrypted"),
    ],
)
def test_input_that_cannot_be_used_is_2(arguments: list[str], says: str, capsys: Said) -> None:
    assert health(*arguments) == 2
    line = line_of(capsys)
    assert line.startswith("error: ")
    assert says in line


@pytest.mark.parametrize("arguments", [[], ["--endpoint", "x:1", "--wait", "soon"]])
def test_arguments_that_cannot_be_read_are_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        health(*arguments)
    assert caught.value.code == 2
