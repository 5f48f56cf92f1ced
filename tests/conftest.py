"""Fixtures that several files share: a tiny model on disk, and a reward server in a process of its own."""

from __future__ import annotations

import os

# One thread each, here and in every child: two cores are shared by ranks, a server and its workers, and torch's threads
# spin while they wait for one another. No hub here, and none is to be asked.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # TRL calls rollout_func experimental in a warning

import gc
import shutil
from collections.abc import Callable, Generator, Iterator
from typing import Any

import pytest

from reward_server.launch import ServerProcess, launch_server
from tests.support.builders import save_tiny_model
from tests.support.certificates import Certificates


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What a test logged may hold lone surrogates, which a report cannot carry from one process of tests to another."""
    report = yield
    report.sections = [(name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections]
    return report


def pytest_collection_finish() -> None:
    """Each training here collects garbage, which takes longer than the training itself if it visits every module."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a tiny causal LM and its tokenizer."""
    return str(save_tiny_model(tmp_path_factory.mktemp("tiny-model")))


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    if shutil.which("openssl") is None:
        pytest.skip("the openssl command makes the certificates, and is not here")
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def serve() -> Iterator[Callable[..., ServerProcess]]:
    """Starts servers of the given scorers; all of them end with the test."""
    servers: list[ServerProcess] = []

    def start(*scorers: dict[str, Any], listen: str | None = None, **config: Any) -> ServerProcess:
        servers.append(launch_server({"scorers": list(scorers), "workers": 1, **config}, listen=listen, timeout_s=60))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()
