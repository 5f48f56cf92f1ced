"""The service on a Ray cluster of two nodes, behind Ray's proxy: what users have of a plain server stays.

One cluster serves all of these tests. Each deploys applications of its own names, which ends those before.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from reward_server import wire
from reward_server.client import RewardClient
from reward_server.errors import CallError, CredentialsError, DeadlineError, GroupTooLargeError, InvalidGroupError
from reward_server.launch import ServerProcess
from reward_server.types import Group, GroupScores
from reward_server.v1 import reward_pb2 as pb
from reward_server.v1 import reward_pb2_grpc as pb_grpc
from tests.support.builders import make_group
from tests.support.processes import descendants, is_alive, wait_until
from tests.support.ray_cluster import RayCluster
from tests.support.replicas import Load, lengths
from tests.support.servers import function

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

MISBEHAVING = Path(__file__).parents[2] / "support" / "misbehaving.py"

LENGTH = {"type": "length", "name": "length", "max": 10}
# A scorer on the event loop, one in a worker process that needs a column, one that has nothing to say, one that fails.
SCORERS = [
    {**LENGTH, "weight": 0.5},
    function("target_share", weight=2.0),
    function("never"),
    function("raises"),
]


def waiting(seconds: float, **kwargs: Any) -> dict[str, Any]:
    """A scorer that takes so many seconds on the replica's event loop, and says in which process it ran."""
    made = {"function": f"{MISBEHAVING}:make_waiting", "factory": True, "kwargs": {"seconds": seconds, **kwargs}}
    return {"type": "function", "name": "waiting", "place": "loop", **made}


def application(name: str, *scorers: dict[str, Any], replicas: int = 1, **config: Any) -> dict[str, Any]:
    """An application of a Serve file, whose configuration is its deployment's user_config."""
    user_config = {"scorers": list(scorers), "workers": 1, **config}
    deployment: dict[str, Any] = {"name": "RewardServer", "num_replicas": replicas, "user_config": user_config}
    return {
        "name": name,
        "route_prefix": f"/{name}",
        "import_path": "reward_server.ray:app",
        "deployments": [deployment],
    }


def split(name: str, *scorers: dict[str, Any]) -> dict[str, Any]:
    args = {"split": True, "config": {"scorers": list(scorers), "workers": 1}}
    return {"name": name, "route_prefix": f"/{name}", "import_path": "reward_server.ray:app", "args": args}


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    started = RayCluster()
    yield started
    started.close()


@pytest.fixture
def deploy(cluster: RayCluster) -> Callable[..., None]:
    """Deploys these applications and waits for them, and for Ray's proxy to know them, which is later."""

    def wait(*applications: dict[str, Any], replicas: int | None = None) -> None:
        cluster.deploy(*applications)
        for one in applications:
            cluster.wait_for(one["name"], replicas)
            wait_for_an_answer(cluster, one["name"])

    return wait


Deploy = Callable[..., None]


def wait_for_an_answer(cluster: RayCluster, name: str) -> None:
    with (
        RewardClient(cluster.endpoint, metadata={"application": name}) as client,
        contextlib.suppress(CredentialsError),
    ):
        client.connect(60)


def without_times(scores: GroupScores) -> GroupScores:
    return dataclasses.replace(scores, queued_s=0.0, compute_s=0.0)


Answers = list[tuple[float, float, GroupScores]]
"""When each call began and ended, and its scores."""


def pids(answers: Answers) -> set[int]:
    """The replicas that scored."""
    return {answer.scorers[0].extra["pid"][0] for _, _, answer in answers}


# ---------------------------------------------------------------------------------------------------------- the answers


def test_answers_whole_and_split_are_those_of_a_plain_server(
    cluster: RayCluster, deploy: Deploy, serve: Callable[..., ServerProcess]
) -> None:
    plain = serve(*SCORERS).endpoint
    deploy(application("whole", *SCORERS), split("split", *SCORERS))
    groups = [
        make_group(["a", "bb", ""], columns={"target": "a"}, group_id="of all"),
        make_group(["a"], columns={"target": "b"}, group_id="of two", scorers=("target_share", "length")),
    ]
    with RewardClient(plain) as client:
        info, answers = client.connect(10), [without_times(client.score(group)) for group in groups]
    assert [len(answer.scorers) for answer in answers] == [4, 2]
    for name in ("whole", "split"):
        with RewardClient(cluster.endpoint, timeout_s=30, metadata={"application": name}) as client:
            limits = dataclasses.replace(info.limits, max_groups=0)  # Ray's proxy deals out calls, and not groups
            assert client.connect(10) == dataclasses.replace(info, limits=limits)
            assert [without_times(client.score(group)) for group in groups] == answers
            refuses(client, make_group(["a"]), InvalidGroupError, "needs the column 'target'")
            refuses(client, make_group(["a"], scorers=("lenth",)), InvalidGroupError, "did you mean 'length'")
        with RewardClient(cluster.endpoint, timeout_s=30, metadata={"application": name}) as client:
            unasked = client.submit_all(groups)  # it does not know yet that groups come alone here
            assert [without_times(future.result()) for future in unasked] == answers

    request = pb.ScoreCompletionRequest(wire_version=1, run_id="r", group_id="g", of=2)
    with grpc.insecure_channel(cluster.endpoint) as channel:
        with pytest.raises(grpc.RpcError, match="do not meet behind Ray Serve") as refused:
            pb_grpc.RewardServiceStub(channel).ScoreCompletion(
                request, timeout=20, metadata=(("application", "whole"),)
            )
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT

    with RewardClient(cluster.endpoint, metadata={"application": "other"}) as client:
        refuses(client, make_group(["a"]), CallError, "no such application .* 'other' not found")


def refuses(client: RewardClient, group: Group, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        client.score(group)


def test_credentials_limits_quotas_records_and_metrics_are_those_of_the_configuration(
    cluster: RayCluster, deploy: Deploy, tmp_path: Path
) -> None:
    tokens, records = tmp_path / "tokens", tmp_path / "records.jsonl"
    tokens.write_text("team: old\n")
    deploy(
        application(
            "guarded",
            LENGTH,
            tokens_file=str(tokens),
            quotas={"team": {"calls_per_minute": 3}},
            limits={"max_completions": 2},
            records={"path": str(records)},
        )
    )
    with RewardClient(cluster.endpoint, token="old", timeout_s=20) as client:
        client.score(make_group(["a"]))
        refuses(client, make_group(["a"] * 3), GroupTooLargeError, "takes 2: raise limits.max_completions")
    with RewardClient(cluster.endpoint, timeout_s=20) as client:
        refuses(client, make_group(["a"]), CredentialsError, "asks for a token")
    assert wait_until(lambda: records.exists() and '"length"' in records.read_text(), 10)

    code, details, trailers = "OK", "", {}
    with grpc.insecure_channel(cluster.endpoint) as channel:
        for number in range(4):
            request = wire.encode_group(make_group(["a"], group_id=str(number)))
            call = pb_grpc.RewardServiceStub(channel).ScoreGroup
            try:
                call(request, timeout=10, metadata=(("authorization", "Bearer old"),))
            except grpc.RpcError as error:
                code, details, trailers = error.code().name, error.details(), dict(error.trailing_metadata())
    assert code == "RESOURCE_EXHAUSTED"
    assert "over its quota of 3 calls a minute" in details
    assert 0 < int(trailers["grpc-retry-pushback-ms"]) <= 60_000, "the time to wait is lost on the way"

    tokens.write_text("team: new\n")
    with RewardClient(cluster.endpoint, token="old", timeout_s=20) as client:
        refuses(client, make_group(["a"]), CredentialsError, "the token is not one of this server's")

    counted = r'ray_reward_server_scores_total\{[^}]*application="guarded"[^}]*scorer="length",status="OK"\} 3\.0'
    assert wait_until(lambda: re.search(counted, cluster.metrics()) is not None, 30), cluster.metrics()


def test_a_call_that_is_given_up_is_cancelled_in_the_replica(
    cluster: RayCluster, deploy: Deploy, tmp_path: Path
) -> None:
    notes = tmp_path / "notes"
    endless = waiting(600, notes=str(notes))
    deploy(application("endless", endless), split("endless-split", endless))
    for name in ("endless", "endless-split"):
        notes.write_text("")
        with RewardClient(cluster.endpoint, metadata={"application": name}) as client:
            with pytest.raises(DeadlineError, match=r"within 2 s"):
                client.score(make_group(["a"]), timeout_s=2)
        assert wait_until(lambda: notes.read_text().split() == ["begun", "cancelled"], 10), (name, notes.read_text())


# ---------------------------------------------------------------------------------------------------- replicas come, go


def test_a_replica_and_a_node_that_are_killed_in_a_call_lose_nothing(cluster: RayCluster, deploy: Deploy) -> None:
    cluster.add_worker_node()
    deploy(application("killed", waiting(1.0), function("vowels"), replicas=4), replicas=4)
    replicas = cluster.replicas("killed")
    workers = descendants(replicas[0]["pid"])
    assert workers, "no worker process"
    assert len({replica["node"] for replica in replicas}) == 2
    with RewardClient(cluster.endpoint) as client:
        client.score(make_group(["a"]))
        for kill in (lambda: os.kill(replicas[0]["pid"], signal.SIGKILL), cluster.kill_worker_node):
            before = client.counts.retries
            load = Load(client, timeout_s=60).submit(40)
            time.sleep(0.3)
            kill()
            load.finish()
            assert not load.errors()
            assert not load.wrong(lengths)
            assert client.counts.retries > before, "no call was cut"
    assert wait_until(lambda: not any(map(is_alive, workers)), 10), "its worker processes outlive a replica"


def test_a_replica_of_one_scorer_that_is_killed_in_a_call_loses_nothing(cluster: RayCluster, deploy: Deploy) -> None:
    deploy({**split("parts", LENGTH, waiting(1.0)), "deployments": [{"name": "waiting", "num_replicas": 2}]})
    victim = next(replica for replica in cluster.replicas("parts") if replica["deployment"] == "waiting")
    with RewardClient(cluster.endpoint) as client:
        load = Load(client, timeout_s=60).submit(20)
        time.sleep(0.5)
        os.kill(victim["pid"], signal.SIGKILL)
        load.finish()
        assert not load.errors()
        assert {len(future.result().scorers) for future in load.futures.values()} == {2}
        assert client.counts.retries > 0, "no call was cut"


def test_load_brings_four_replicas_and_its_end_takes_them_away_and_no_call_fails(
    cluster: RayCluster, deploy: Deploy
) -> None:
    scaled = application("scaled", waiting(0.3))
    deployment = scaled["deployments"][0]
    # Two groups in a replica: twelve callers would need six, and one caller needs one.
    soon = {"metrics_interval_s": 0.5, "look_back_period_s": 2.0, "upscale_delay_s": 0.5, "downscale_delay_s": 2.0}
    bounds = {"min_replicas": 1, "max_replicas": 4, "target_ongoing_requests": 2}
    del deployment["num_replicas"]
    deployment["autoscaling_config"] = bounds | soon
    deploy(scaled, replicas=1)
    with RewardClient(cluster.endpoint, timeout_s=60) as client:
        for callers, replicas in ((12, 4), (1, 1)):
            with under_load(client, callers) as answers:
                cluster.wait_for("scaled", replicas)
                assert wait_until(lambda answers=answers, n=replicas: len(pids(answers[-8 * n :])) == n, 60)  # type: ignore[misc]


def test_an_update_under_load_is_one_change_and_a_refused_one_is_none(cluster: RayCluster, deploy: Deploy) -> None:
    old, new, broken = waiting(0.05), waiting(0.04), {**waiting(0.04), "function": "no_such_module:f"}
    deploy(application("updated", old, replicas=4), replicas=4)
    with RewardClient(cluster.endpoint, timeout_s=60) as client:
        before = client.connect(10).config_digest
        with under_load(client) as answers:
            assert wait_until(lambda: len(answers) > 20, 30)
            deploy(application("updated", new, replicas=4), replicas=4)
            assert wait_until(lambda: answers[-1][2].config_digest != before, 60)
            after = answers[-1][2].config_digest
            deploy(application("updated", broken, replicas=4), replicas=4)
            beginning = len(answers)
            assert wait_until(lambda: len(answers) > beginning + 60, 60)
    assert {answer.config_digest for _, _, answer in answers} == {before, after}
    changed_at = min(ended for _, ended, answer in answers if answer.config_digest == after)
    back = [answer for began, _, answer in answers if began > changed_at and answer.config_digest == before]
    assert not back, f"{len(back)} calls that began after the change were scored by the configuration of before"


class under_load:
    """Callers that score one group after another while the block lasts. It fails if one of the calls does."""

    def __init__(self, client: RewardClient, callers: int = 8):
        self._client = client
        self._done = threading.Event()
        self._pool = ThreadPoolExecutor(callers)
        self._count = callers
        self.answers: Answers = []

    def __enter__(self) -> Answers:
        self._callers = [self._pool.submit(self._call, str(number)) for number in range(self._count)]
        return self.answers

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._pool.shutdown()
        for caller in self._callers:
            caller.result()

    def _call(self, name: str) -> None:
        while not self._done.is_set():
            began = time.monotonic()
            scores = self._client.score(make_group(["a"], group_id=f"{name} {began}"))
            self.answers.append((began, time.monotonic(), scores))
