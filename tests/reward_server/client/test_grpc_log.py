"""What gRPC's C++ core writes to a user's terminal: nothing, unless the user asks for it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

# A server without the health service has gRPC log an error; one that ends has it log the GOAWAY that it sent.
PROGRAM = """
import reward_server.client, time
from concurrent import futures
import grpc

server = grpc.server(futures.ThreadPoolExecutor(2))
port = server.add_insecure_port("127.0.0.1:0")
server.start()
client = reward_server.client.RewardClient(f"127.0.0.1:{port}")
try:
    client.info(10)
except reward_server.errors.WireVersionError:
    pass
server.stop(None).wait()
time.sleep(0.2)
"""


def standard_error(code: str, **environment: str) -> str:
    env = {name: value for name, value in os.environ.items() if name != "GRPC_VERBOSITY"} | environment
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True, env=env)
    return run.stderr


def test_a_client_brings_none_of_its_lines() -> None:
    assert standard_error(PROGRAM) == ""


def test_a_user_who_asks_for_them_gets_them() -> None:
    assert "health checking Watch method returned UNIMPLEMENTED" in standard_error(PROGRAM, GRPC_VERBOSITY="INFO")


@pytest.mark.slow
def test_a_trainer_loads_the_client_before_anything_loads_grpc() -> None:
    """gRPC reads the variable once, when it is imported."""
    standard_error("import torch, transformers, datasets, trl, sys; assert 'grpc' not in sys.modules")
