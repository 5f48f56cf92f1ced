"""Samples of a group that come from many callers meet: at one of several replicas, at one process of a server, and at
the next one when that dies.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest

from reward_server import wire
from reward_server.client import CohortClient
from reward_server.launch import ServerProcess
from reward_server.rendezvous import ranked
from reward_server.types import Completion, Sample, SampleScores
from reward_server.v1 import reward_pb2_grpc as pb_grpc
from tests.support.processes import descendants, wait_until
from tests.support.replicas import Replicas

pytestmark = pytest.mark.slow

OF = 3
GROUPS = [f"group {number}" for number in range(12)]

RANK = """
import os

def rank(group):
    order = sorted(range(len(group)), key=lambda index: len(group.completions[index].content))
    return [float(order.index(index)) for index in range(len(group))]
"""


@pytest.fixture
def rank(tmp_path: Path) -> dict[str, str]:
    """A scorer that says how many of a group's completions are shorter."""
    (code := tmp_path / "rank.py").write_text(RANK)
    return {"type": "group_function", "name": "rank", "function": f"{code}:rank"}


@pytest.fixture
def clients() -> Iterator[Callable[..., list[CohortClient]]]:
    """Opens a client for each of the samples of a group: they know nothing of one another."""
    with ExitStack() as stack:
        yield lambda *endpoints: [stack.enter_context(CohortClient(list(endpoints), timeout_s=30)) for _ in range(OF)]


def make_sample(group: str, index: int, **names: float) -> Sample:
    return Sample("p", Completion("a" * (1 + (index + 1) % OF)), OF, index, run_id="run", group_id=group, **names)  # type: ignore[arg-type]


EXPECTED = [1.0, 2.0, 0.0]  # of "aa", "aaa", "a"


def submitted(clients: Sequence[CohortClient], *indices: int, gather_s: float = 20) -> list[Future[SampleScores]]:
    return [
        clients[index].submit(make_sample(group, index, gather_s=gather_s)) for group in GROUPS for index in indices
    ]


def values(futures: Sequence[Future[SampleScores]]) -> list[float | None]:
    return [future.result(timeout=40).scores.scorers[0].scores[0].value for future in futures]


def test_the_samples_of_a_group_meet_at_the_same_one_of_several_replicas(
    replicas: Replicas, clients: Callable[..., list[CohortClient]], rank: dict[str, str]
) -> None:
    first, second = replicas(2, rank)
    opened = clients(first.endpoint, second.endpoint)
    assert values(submitted(opened, *range(OF))) == EXPECTED * len(GROUPS)
    targets = [f"ipv4:{replica.endpoint}" for replica in (first, second)]
    assert {ranked(targets, "run", group)[0] for group in GROUPS} == set(targets)  # it was not one for all


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGTERM], ids=["dies", "drains"])
def test_the_callers_of_a_replica_that_goes_away_meet_at_the_next_one(
    stop: signal.Signals, replicas: Replicas, clients: Callable[..., list[CohortClient]], rank: dict[str, str]
) -> None:
    first, second = replicas(2, rank)
    opened = clients(first.endpoint, second.endpoint)
    waiting = submitted(opened, 0, 1)
    time.sleep(0.5)
    os.kill(first.pid, stop)
    assert values(submitted(opened, 2)) == EXPECTED[2:] * len(GROUPS)
    assert values(waiting) == EXPECTED[:2] * len(GROUPS)


def test_a_restarted_replica_is_found_by_all_who_wait_for_it(
    replicas: Replicas, clients: Callable[..., list[CohortClient]], rank: dict[str, str]
) -> None:
    [only] = replicas(1, rank)
    opened = clients(only.endpoint)
    waiting = submitted(opened, 0, 1)
    time.sleep(0.5)
    only.kill()
    only.start()
    assert values(submitted(opened, 2)) == EXPECTED[2:] * len(GROUPS)
    assert values(waiting) == EXPECTED[:2] * len(GROUPS)


# ------------------------------------------------------------------------------- several processes behind one address


@pytest.fixture
def fleet(
    server: Callable[..., ServerProcess], serve: Callable[..., ServerProcess], rank: dict[str, str]
) -> ServerProcess:
    return serve(rank, listen="127.0.0.1:0", processes=3)


def test_samples_that_reach_different_processes_of_a_server_meet_at_one(fleet: ServerProcess) -> None:
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]  # a connection each
    with ExitStack() as stack:
        channels = [stack.enter_context(grpc.insecure_channel(fleet.endpoint, options)) for _ in range(24)]
        stubs = [pb_grpc.RewardServiceStub(channel) for channel in channels]
        calls = [
            stubs[number % len(stubs)].ScoreCompletion.future(wire.encode_sample(make_sample(group, index)), timeout=30)
            for number, (group, index) in enumerate((group, index) for group in GROUPS for index in range(OF))
        ]
        answers = [wire.decode_sample_scores(call.result()) for call in calls]
        assert [answer.scores.scorers[0].scores[0].value for answer in answers] == EXPECTED * len(GROUPS)
        again = wire.encode_sample(make_sample(GROUPS[0], 0))
        assert {stub.ScoreCompletion(again, timeout=30).scores.scorers[0].scores[0].value for stub in stubs} == {1.0}
        other = wire.encode_sample(Sample("p", Completion("other"), OF, 0, run_id="run", group_id=GROUPS[0]))
        refusals = [stub.ScoreCompletion.future(other, timeout=30).exception() for stub in stubs]
    assert {refusal.code() for refusal in refusals} == {grpc.StatusCode.INVALID_ARGUMENT}
    assert "came before with another prompt" in refusals[0].details()


def test_callers_meet_again_when_all_processes_of_a_server_have_died(
    fleet: ServerProcess, clients: Callable[..., list[CohortClient]]
) -> None:
    opened = clients(fleet.endpoint)
    waiting = submitted(opened, 0, 1)
    time.sleep(0.5)
    members = descendants(fleet.pid)
    for pid in members:
        os.kill(pid, signal.SIGKILL)
    assert wait_until(lambda: bool(descendants(fleet.pid) - members), 20)
    assert values(submitted(opened, 2)) == EXPECTED[2:] * len(GROUPS)
    assert values(waiting) == EXPECTED[:2] * len(GROUPS)
