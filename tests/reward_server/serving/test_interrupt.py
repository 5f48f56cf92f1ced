"""Ctrl-C and SIGTERM: what a person sees in the terminal, the exit code, and that no process is left."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from reward_server.client import RewardClient
from tests.support.builders import make_group
from tests.support.programs import Program, running

OBEYS = f"{Path(__file__).parents[2]}/support/misbehaving.py:obeys"

pytestmark = pytest.mark.slow  # servers in processes of their own, and workers that are busy when they end

EMBEDDING = """
import sys
from reward_server.client import RewardClient
from reward_server.launch import launch_server, launch_supervised
from reward_server.types import Completion, Group

config = {"scorers": [{"type": "function", "name": "obeys", "function": sys.argv[1]}], "workers": 2}
if sys.argv[2] == "1":
    server = launch_supervised(config)
else:
    server = launch_server({**config, "processes": int(sys.argv[2])}, listen="127.0.0.1:0")
client = RewardClient(server.endpoint)
client.connect(60)
pending = [client.submit(Group("p", (Completion("sleep 600"),), group_id=str(n)), timeout_s=600) for n in range(4)]
try:
    print("ready", flush=True)
    pending[0].result()
except KeyboardInterrupt:
    client.close()
    server.stop()
    sys.exit(130)
"""


@pytest.fixture(params=["1", "2"], ids=["one process", "two processes"])
def serving(request: pytest.FixtureRequest) -> Iterator[tuple[Program, str]]:
    """`reward-server serve` of a function, with a grace of half a second, and its endpoint."""
    config = f'{{"scorers": [{{"type": "function", "name": "obeys", "function": "{OBEYS}"}}], "workers": 2}}'
    options = ["--listen", "127.0.0.1:0", "--drain-grace-s", "0.5", "--processes", request.param]
    with running("-m", "reward_server.cli", "serve", "--config", "-", *options, stdin=config) as program:
        yield program, program.read_until("on ").removeprefix("on ")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_idle_server_ends_with_0_and_says_that_it_drains(
    serving: tuple[Program, str], number: signal.Signals
) -> None:
    code, errors = serving[0].signal_group(number)
    assert code == 0
    assert_quiet(errors)
    assert all("draining" in line for line in errors.splitlines())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_server_with_busy_workers_says_how_many_calls_it_cuts_and_no_traceback(
    serving: tuple[Program, str], number: signal.Signals
) -> None:
    program, endpoint = serving
    with RewardClient(endpoint) as client:
        client.connect(30)
        pending = [client.submit(make_group(["sleep 600"], group_id=str(n)), timeout_s=30) for n in range(4)]
        client.info()
        code, errors = program.signal_group(number)
        assert not any(future.done() and future.exception() is None for future in pending)
    assert code == 1
    assert_quiet(errors)
    assert re.search(r"ERROR stopping with \d calls in flight: they are answered UNAVAILABLE", errors)


@pytest.mark.parametrize("processes", ["1", "2"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)])
def test_an_embedded_server_ends_with_its_program_without_a_word(
    processes: str, number: signal.Signals, code: int
) -> None:
    with running("-c", EMBEDDING, OBEYS, processes) as program:
        program.read_until("ready")
        assert program.signal_group(number) == (code, "")


def assert_quiet(errors: str) -> None:
    """No traceback, nothing of asyncio, no line of gRPC's C++ core."""
    assert "Traceback" not in errors
    assert "never retrieved" not in errors
    assert not re.search(r"^[IWEF]\d{4} ", errors, re.MULTILINE), errors
