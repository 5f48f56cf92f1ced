"""A replica that is added behind a name gets traffic from clients that are connected already, and nothing fails."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reward_server.client import RewardClient
from reward_server.launch import ServerProcess, launch_server
from tests.support.names import NameServer
from tests.support.replicas import Load, lengths
from tests.support.servers import slow_length


@pytest.fixture
def names(no_process_is_left: None) -> Iterator[NameServer]:
    server = NameServer(["127.0.0.1"])
    yield server
    server.close()


def replica(listen: str, seen: Path, **config: Any) -> ServerProcess:
    scorers = [slow_length(0.02, seen=str(seen))]
    return launch_server({"scorers": scorers, "workers": 1, **config}, listen=listen, timeout_s=60)


@pytest.mark.slow
def test_a_new_replica_behind_a_name_gets_traffic_of_a_client_that_stays_connected(
    names: NameServer, tmp_path: Path
) -> None:
    config = {"max_connection_age_s": 2}
    with replica("127.0.0.1:0", tmp_path / "old", **config) as old:
        port = int(old.endpoint.rpartition(":")[2])
        with RewardClient(names.endpoint(port), timeout_s=20) as client:
            client.connect(10)
            assert not Load(client, timeout_s=20).submit(4).finish().errors()
            with replica(f"127.0.0.2:{port}", tmp_path / "new", **config):
                names.addresses.append("127.0.0.2")
                load = Load(client, timeout_s=30)
                began = time.monotonic()
                while not (tmp_path / "new").exists():
                    assert time.monotonic() - began < 20, "the new replica has got nothing"
                    load.submit(2)
                    time.sleep(0.05)
                load.submit(10).finish()
                assert not load.errors()
                assert not load.wrong(lengths)
                assert client.counts.retries == 0


@pytest.mark.slow
def test_a_call_that_outlasts_its_connections_age_finishes(no_process_is_left: None) -> None:
    config = {"scorers": [slow_length(3)], "workers": 1, "max_connection_age_s": 0.5}
    with launch_server(config, listen="127.0.0.1:0", timeout_s=60) as server:
        with RewardClient(server.endpoint, timeout_s=20) as client:
            load = Load(client, timeout_s=20).submit(1).finish()
            assert not load.errors()
            assert client.counts.retries == 0
