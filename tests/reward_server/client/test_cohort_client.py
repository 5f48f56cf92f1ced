"""`CohortClient` and the replicas that it finds, with real servers; `tests/faults/test_cohorts.py` kills them."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from reward_server.client import ClientTLS, CohortClient
from reward_server.client.replicas import Replicas
from reward_server.client.targets import target_of
from reward_server.errors import CallError, ConfigError, DeadlineError, InvalidGroupError, UnavailableError
from reward_server.launch import launch_server
from reward_server.rendezvous import ranked
from reward_server.types import Completion, Sample, Status
from tests.support.processes import run_forking
from tests.support.servers import slow_length

LENGTH = {"type": "length", "name": "short", "max": 3}


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with launch_server({"scorers": [LENGTH], "workers": 1}, listen="127.0.0.1:0", timeout_s=60) as server:
        yield server.endpoint


def alone(text: str = "a") -> Sample:
    return Sample("p", Completion(text))


def test_a_name_is_resolved_to_its_replicas_and_a_list_is_taken_as_it_is() -> None:
    assert list(Replicas(target_of("localhost:1"), None).current()) == ["ipv4:127.0.0.1:1"]
    found = Replicas(target_of(["127.0.0.2:1", "127.0.0.1:1"]), None).current()
    assert set(found) == {"ipv4:127.0.0.1:1", "ipv4:127.0.0.2:1"}
    assert list(Replicas("unix:/tmp/s", None).current()) == ["unix:/tmp/s"]
    with pytest.raises(ConfigError, match=r"endpoint 'no\.such\.host\.invalid:1' cannot be resolved: .*; is the name"):
        Replicas(target_of("no.such.host.invalid:1"), None).current()


def test_a_certificate_is_checked_for_the_name_and_not_for_the_address_that_it_is_resolved_to() -> None:
    [replica] = Replicas(target_of("localhost:1"), ClientTLS("ca.pem")).current().values()
    assert replica.tls == ClientTLS("ca.pem", server_name="localhost")
    [replica] = Replicas(target_of("127.0.0.1:1"), ClientTLS("ca.pem")).current().values()
    assert replica.tls == ClientTLS("ca.pem")


def test_replicas_that_come_are_found_and_a_name_that_fails_later_keeps_those_of_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers: list[Any] = [["10.0.0.1"], ["10.0.0.1", "10.0.0.2"], OSError("no network")]

    def resolve(host: str, port: int, **_: Any) -> Any:
        answer = answers[0] if len(answers) == 1 else answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return [(socket.AF_INET, None, None, "", (ip, port)) for ip in answer]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    replicas = Replicas("dns:///rewards:1", None)
    assert len(replicas.current()) == 1
    for _ in range(2):
        replicas.refresh(older_than_s=0)
        deadline = time.monotonic() + 5
        while replicas._is_resolving and time.monotonic() < deadline:
            time.sleep(0.01)
        assert set(replicas.current()) == {"ipv4:10.0.0.1:1", "ipv4:10.0.0.2:1"}


def test_a_replica_that_leaves_moves_only_the_groups_that_met_there() -> None:
    names = [f"ipv4:10.0.0.{number}:1" for number in range(5)]
    groups = [f"group {number}" for number in range(500)]
    before = {group: ranked(names, "run", group) for group in groups}
    after = {group: ranked(names[1:], "run", group)[0] for group in groups}
    assert all(after[group] == next(n for n in before[group] if n != names[0]) for group in groups)
    shares = [sum(order[0] == name for order in before.values()) for name in names]
    assert min(shares) > 60  # of 100 each, if all were equal


def test_a_sample_is_scored_and_a_missing_sibling_is_a_timeout_within_half_of_the_time(endpoint: str) -> None:
    with CohortClient(endpoint, timeout_s=2) as client:
        assert client.score(alone()).scores.rewards() == [1.0]
        began = time.monotonic()
        answer = client.score(Sample("p", Completion("a"), of=2, group_id="g"))
        assert 0.9 < time.monotonic() - began < 1.9
    [score] = answer.scores.scorers[0].scores
    assert score.status is Status.TIMEOUT
    assert "1 of the 2 completions of group 'g'" in score.message


def test_errors_say_what_is_wrong(endpoint: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with CohortClient(f"127.0.0.1:{port}") as client, pytest.raises(UnavailableError, match=f"no reward .*:{port}"):
        client.score(alone(), timeout_s=0.5)
    with CohortClient(endpoint) as client:
        with pytest.raises(InvalidGroupError, match="index 5 is not below of = 2"):
            client.score(Sample("p", Completion("a"), 2, 5, group_id="g"))
        with pytest.raises(InvalidGroupError, match="cannot be sent to the reward service"):
            client.submit(Sample("p", Completion("a", columns={"x": object()})))
        with pytest.raises(InvalidGroupError, match=r"index -1 of 2 .* cannot be sent: Value out of range"):
            client.submit(Sample("p", Completion("a"), 2, -1, group_id="g"))
        with pytest.raises(InvalidGroupError, match="`of` is 0"):
            client.score(Sample("p", Completion("a"), 0, 0, group_id="g"))
    with CohortClient("no-such-host.invalid:1") as client, pytest.raises(ConfigError, match="cannot be resolved"):
        client.score(alone())


def test_a_call_ends_with_its_deadline_or_when_it_is_cancelled(serve: Callable[..., Any]) -> None:
    with CohortClient(serve(slow_length(5.0)).endpoint) as client:
        with pytest.raises(DeadlineError):
            client.score(alone(), timeout_s=0.3)
        pending = client.submit(alone())
        assert pending.cancel()
        waiting = client.submit(alone())
        client.close()
        with pytest.raises(CallError, match="cancelled"):
            waiting.result(timeout=10)


FORKING = """
import os, sys
from reward_server.client import CohortClient
from reward_server.types import Completion, Sample

def scored(text):
    return client.score(Sample("p", Completion(text))).scores.rewards()

with CohortClient(sys.argv[1], timeout_s=20) as client:
    assert scored("a") == [1.0]
    if not (child := os.fork()):
        os._exit(int(10 * scored("ab")[0]))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 10
    assert scored("a") == [1.0]
"""


def test_a_forked_child_has_connections_of_its_own(endpoint: str) -> None:
    run_forking(FORKING, endpoint)
