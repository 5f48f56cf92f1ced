"""A new configuration takes over between groups, or is refused: real servers, real signals, files that change."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from reward_server.client import RewardClient
from reward_server.launch import ServerProcess, launch_server
from reward_server.types import GroupScores
from tests.support.builders import make_group
from tests.support.processes import descendants, is_alive, wait_until

pytestmark = pytest.mark.slow  # one process after another, each with its own

SOURCE = """
import time

{define} f(completions, **_):
    for completion in completions:
        if completion.startswith("sleep "):
            time.sleep(float(completion.removeprefix("sleep ")))
    return [{value}] * len(completions)
"""
FUNCTIONS = ("sync", "asynchronous")


class Rewards:
    """A server of two functions, in a worker and on the event loop, that return the number in their files."""

    def __init__(self, folder: Path):
        self._folder = folder
        self.log = folder / "log"
        self.config = folder / "reward.yaml"
        self.is_about(1)

    def is_about(self, value: int, **config: Any) -> None:
        """Writes the files: all of them return this value."""
        for name, define in zip(FUNCTIONS, ("def", "async def"), strict=True):
            (self._folder / f"{name}.py").write_text(SOURCE.format(define=define, value=f"{value}.0"))
        scorers = [{"type": "function", "name": name, "function": f"{name}.py:f"} for name in FUNCTIONS]
        self.config.write_text(json.dumps({"scorers": scorers, "workers": 1, **config}))

    def start(self) -> ServerProcess:
        self.server = launch_server(self.config, log_path=self.log, timeout_s=60)
        return self.server

    def reload(self, expect: str) -> None:
        """Asks for it, and waits until the log says what is expected."""
        seen = len(self.log.read_text())
        os.kill(self.server.pid, signal.SIGHUP)
        assert wait_until(lambda: expect in self.log.read_text()[seen:], 20), self.log.read_text()


@pytest.fixture
def rewards(tmp_path: Path) -> Iterator[Rewards]:
    made = Rewards(tmp_path)
    made.start()
    yield made
    made.server.stop(grace_s=0.5)


@pytest.fixture
def client(rewards: Rewards) -> Iterator[RewardClient]:
    with RewardClient(rewards.server.endpoint, timeout_s=30) as client:
        client.connect(10)
        yield client


def values(scores: GroupScores) -> set[float | None]:
    return {score.value for scorer in scores.scorers for score in scorer.scores}


def digest(client: RewardClient) -> str:
    return client.info(5).config_digest


def test_a_reload_under_load_loses_nothing_and_no_group_mixes_versions(rewards: Rewards, client: RewardClient) -> None:
    digests = {1.0: digest(client)}
    pending = [client.submit(make_group(["a", "sleep 0.01"], group_id=f"before {n}")) for n in range(100)]
    rewards.is_about(2)
    os.kill(rewards.server.pid, signal.SIGHUP)
    number = 0
    while digest(client) == digests[1.0]:
        number += 1
        pending.append(client.submit(make_group(["a", "sleep 0.01"], group_id=f"meanwhile {number}")))
        time.sleep(0.005)
    digests[2.0] = digest(client)
    after = [client.submit(make_group(["a"], group_id=f"after {n}")) for n in range(10)]
    for scores in [future.result() for future in pending + after]:
        [value] = values(scores)
        assert scores.config_digest == digests[value or 0.0]
    assert all(values(future.result()) == {2.0} for future in after)
    assert client.counts.retries == 0


def test_a_group_in_flight_finishes_on_the_old_one_whose_worker_then_ends(
    rewards: Rewards, client: RewardClient
) -> None:
    old_digest, [old_worker] = digest(client), descendants(rewards.server.pid)
    in_flight = client.submit(make_group(["sleep 2"]))
    time.sleep(0.2)
    rewards.is_about(2)
    rewards.reload(expect="serves, in place of")
    assert digest(client) != old_digest
    assert values(client.score(make_group(["a"], group_id="new"))) == {2.0}
    assert not in_flight.done()
    assert is_alive(old_worker)
    assert (values(in_flight.result()), in_flight.result().config_digest) == ({1.0}, old_digest)
    assert wait_until(lambda: not is_alive(old_worker), 5)
    assert len(descendants(rewards.server.pid)) == 1


def broken_yaml(rewards: Rewards) -> None:
    rewards.config.write_text("scorers: [")


def unknown_key(rewards: Rewards) -> None:
    rewards.is_about(2, wrokers=1)


def code_that_does_not_import(rewards: Rewards) -> None:
    rewards.is_about(2)
    (rewards.config.parent / "sync.py").write_text("1 / 0\n")


def a_score_that_fails(rewards: Rewards) -> None:
    rewards.is_about(2)
    (rewards.config.parent / "sync.py").write_text("def f(completions, **_):\n    return [len(completions) / 0]\n")


def a_certificate_that_is_not_there(rewards: Rewards) -> None:
    rewards.is_about(2, tls={"cert": "none.pem", "key": "none.pem"})


def no_file(rewards: Rewards) -> None:
    rewards.config.unlink()


BAD: dict[Callable[[Rewards], None], str] = {
    broken_yaml: "not YAML",
    unknown_key: "wrokers = 1: unknown key, did you mean 'workers'?",
    code_that_does_not_import: "ZeroDivisionError: division by zero",
    a_score_that_fails: "sync: FAILED: ZeroDivisionError",
    a_certificate_that_is_not_there: "tls.cert: cannot read",
    no_file: "there is no configuration file",
}


def test_a_bad_one_is_refused_with_the_reason_and_the_old_serves_on(rewards: Rewards, client: RewardClient) -> None:
    before, workers = digest(client), descendants(rewards.server.pid)
    for spoil, reason in BAD.items():
        rewards.is_about(2)
        spoil(rewards)
        rewards.reload(expect=f"the new configuration is refused, and {before[:12]} serves on: ")
        assert reason in rewards.log.read_text(), spoil.__name__
        assert digest(client) == before
        assert values(client.score(make_group(["a"], group_id=spoil.__name__))) == {1.0}
    assert descendants(rewards.server.pid) == workers
    rewards.is_about(3)
    rewards.reload(expect="serves, in place of")
    assert values(client.score(make_group(["a"]))) == {3.0}


def test_reloads_that_are_asked_for_at_once_end_with_what_the_file_says_last(
    rewards: Rewards, client: RewardClient
) -> None:
    for value in (2, 3, 4):
        rewards.is_about(value)
        for _ in range(3):
            os.kill(rewards.server.pid, signal.SIGHUP)
        time.sleep(0.1)
    assert wait_until(lambda: values(client.score(make_group(["a"]))) == {4.0}, 20)
    assert wait_until(lambda: rewards.log.read_text().count("its scorers are closed") >= 2, 20)
    time.sleep(0.5)  # nothing follows
    assert rewards.log.read_text().count("serves, in place of") <= 4
    assert len(descendants(rewards.server.pid)) == 1
    assert values(client.score(make_group(["a"]))) == {4.0}


def test_limits_are_taken_over_and_what_belongs_to_sockets_is_said_to_wait(
    rewards: Rewards, client: RewardClient
) -> None:
    rewards.is_about(1, limits={"max_completions": 2}, allow_insecure=True)
    rewards.reload(expect="allow_insecure: the changes take effect when the server is started again")
    assert client.info().limits.max_completions == 2


def test_a_server_that_is_loading_anew_drains_at_once(rewards: Rewards, client: RewardClient) -> None:
    (rewards.config.parent / "sync.py").write_text("import time\nopen('loading', 'w')\ntime.sleep(600)\n")
    before = descendants(rewards.server.pid)
    os.kill(rewards.server.pid, signal.SIGHUP)
    assert wait_until(lambda: len(descendants(rewards.server.pid)) == 2, 10)
    workers = descendants(rewards.server.pid)
    began = time.monotonic()
    assert rewards.server.stop() == 0
    assert time.monotonic() - began < 5
    assert not any(map(is_alive, workers | before))


@pytest.mark.parametrize("given", ["nothing", "a row", "a call"])
def test_a_row_of_the_users_is_the_sample_where_the_made_up_one_does_not_fit(tmp_path: Path, given: str) -> None:
    """Or the last group that came."""
    source = "def f(completions, tests, **_):\n    return [{} + tests[0]['n']] * len(completions)\n"
    (tmp_path / "f.py").write_text(source.format(0))
    scorers = [{"type": "function", "name": "f", "function": "f.py:f"}]
    (tmp_path / "reward.json").write_text(json.dumps({"scorers": scorers, "workers": 1}))
    (tmp_path / "row.json").write_text(json.dumps({"prompt": "p", "completions": ["a"], "tests": {"n": 1}}))
    command = [sys.executable, "-m", "reward_server.cli", "serve", "--config", str(tmp_path / "reward.json")]
    command += ["--listen", f"unix:{tmp_path}/s"] + ["--sample", str(tmp_path / "row.json")] * (given == "a row")
    with open(tmp_path / "log", "w") as log, subprocess.Popen(command, stderr=log, stdout=log) as process:
        assert wait_until((tmp_path / "s").exists, 20)
        if given == "a call":
            with RewardClient(f"unix:{tmp_path}/s") as client:
                client.score(make_group(["a"], columns={"tests": {"n": 1}}))
        (tmp_path / "f.py").write_text(source.format(1))
        process.send_signal(signal.SIGHUP)
        refusal = "if these samples do not fit your scorers, start the server with --sample FILE"
        expect = refusal if given == "nothing" else "serves, in place of"
        assert wait_until(lambda: expect in (tmp_path / "log").read_text(), 20), (tmp_path / "log").read_text()
        process.terminate()


def test_a_server_ends_with_its_terminal_and_reloads_while_that_is_open(rewards: Rewards, tmp_path: Path) -> None:
    ours, theirs = os.openpty()
    own_terminal = (
        f"import fcntl, runpy, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); sys.argv[1:] = {['serve']}"
    )
    code = f"{own_terminal} + sys.argv[1:]; runpy.run_module('reward_server.cli', run_name='__main__')"
    command = [sys.executable, "-c", code, "--config", str(rewards.config), "--listen", f"unix:{tmp_path}/s"]
    log = tmp_path / "terminal.log"
    with (
        open(log, "w") as output,
        subprocess.Popen(command, stdin=theirs, stdout=output, stderr=output, start_new_session=True) as process,
    ):
        os.close(theirs)
        assert wait_until((tmp_path / "s").exists, 20), log.read_text()
        process.send_signal(signal.SIGHUP)
        assert wait_until(lambda: "serves, in place of" in log.read_text(), 20), log.read_text()
        os.close(ours)
        assert process.wait(10) == 0


def test_a_configuration_that_came_by_standard_input_cannot_be_read_again(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with launch_server({"scorers": [{"type": "length", "name": "short", "max": 3}]}, log_path=log) as server:
        os.kill(server.pid, signal.SIGHUP)
        assert wait_until(lambda: "came by standard input and cannot be read again" in log.read_text(), 10)
        with RewardClient(server.endpoint) as client:
            assert client.score(make_group(["ab"])).scorers[0].scores[0].value == 1.0
