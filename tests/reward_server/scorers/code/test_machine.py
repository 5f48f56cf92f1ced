"""The scorer `code`: its sandbox, its interpreter, and the service around it."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reward_server.cli.main import main
from reward_server.client import RewardClient
from reward_server.config import config_from_mapping
from reward_server.errors import ConfigError, ScorerLoadError
from reward_server.launch import ServerProcess
from reward_server.sandbox.backends import BACKENDS, Unconfined
from reward_server.scorers.code import CodeScorer
from reward_server.serving.scorer_set import ScorerSet
from reward_server.types import Score, Status
from tests.support.builders import make_group
from tests.support.code import ADD_ONE, TESTS, loaded, result, values
from tests.support.processes import descendants, is_alive, wait_until
from tests.support.sandboxes import needs_sandlock

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_the_version_names_sandbox_and_interpreter(scorer: CodeScorer) -> None:
    assert scorer.version.startswith("2/sandlock-0.")
    assert "/python-3." in scorer.version
    assert not scorer.deterministic, "a busy machine may change a score: none is to be kept"


@needs_sandlock
async def test_a_sandbox_that_stops_nothing_is_refused_with_what_it_lets_through(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(BACKENDS, "sandlock", Unconfined())
    with pytest.raises(ScorerLoadError) as refusal:
        await loaded()
    message = str(refusal.value)
    assert message.startswith("scorer 'tests': the sandbox 'sandlock' does not stop reading files (exited: ")
    for what in ("writing files", "changing files", "network", "unix sockets", "fork bombs"):
        assert f"; {what} (" in message
    assert message.endswith("The others are bubblewrap, none; 'none' confines nothing")


async def test_without_a_sandbox_the_log_is_loud(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "reward_server"):
        scorer = await loaded(sandbox="none")
    assert "WITHOUT A SANDBOX" in caplog.text
    await scorer.close()


async def test_a_tool_that_is_missing_is_named_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ScorerLoadError, match=r"'bubblewrap' cannot be used: there is no bwrap: apt-get install"):
        await loaded(sandbox="bubblewrap")


async def test_an_interpreter_that_does_not_run_is_named() -> None:
    with pytest.raises(ScorerLoadError, match=r"python '/no/such/python' does not run"):
        await loaded(python="/no/such/python")


async def test_an_unknown_sandbox_is_refused_by_the_configuration() -> None:
    with pytest.raises(ConfigError, match=r"sandbox.*'docker'"):
        config_from_mapping({"scorers": [{"type": "code", "name": "t", "sandbox": "docker"}]})


async def test_installed_packages_are_there_only_if_asked_for(scorer: CodeScorer) -> None:
    program = "import pydantic\nprint(pydantic.__name__)"
    tests = {"inputs": [""], "outputs": ["pydantic"]}
    refused = await result(scorer, [program], tests)
    assert refused.scores == (Score(Status.OK, 0.0),)
    assert refused.extra["tests_detail"] == [
        "ModuleNotFoundError: No module named 'pydantic' (it is installed here, and site_packages: true would allow it)"
    ]
    unknown = await result(scorer, ["import no_such_thing"], tests)
    assert unknown.extra["tests_detail"] == ["ModuleNotFoundError: No module named 'no_such_thing'"]
    [needed] = (await result(scorer, ["def f(): return 1"], "import pydantic\nassert f() == 1")).scores
    assert needed.status is Status.INVALID
    assert needed.message.endswith("(it is installed here, and site_packages: true would allow it)")
    wide = await loaded(site_packages=True, sandbox="none")
    assert await values(wide, [program], tests) == [1.0]
    await wide.close()


async def test_a_group_that_outlasts_its_time_is_a_timeout_and_its_programs_end() -> None:
    config = {"type": "code", "name": "tests", "sandbox": "none", "timeout_s": 1, "time_limit_s": 30, "parallel": 1}
    scorers = ScorerSet(config_from_mapping({"scorers": [config]}))
    await scorers.load()
    scores = await scorers.score(make_group(["import time\ntime.sleep(60)"], columns={"tests": TESTS}))
    assert scores.scorers[0].scores[0].status is Status.TIMEOUT
    await scorers.close()


@needs_sandlock
@pytest.mark.slow
async def test_a_server_scores_programs_and_takes_them_with_it(serve: Callable[..., ServerProcess]) -> None:
    server = serve({"type": "code", "name": "tests", "time_limit_s": 20, "max_processes": 4})
    hanging = "import os, time\nif os.fork() == 0:\n    os.setsid()\ntime.sleep(120)"

    def ask(completions: list[str], timeout_s: float) -> Any:
        with RewardClient(server.endpoint) as client:
            return client.score(make_group(completions, columns={"tests": TESTS}), timeout_s=timeout_s)

    scores = await asyncio.to_thread(ask, [ADD_ONE, "print(1)"], 60)
    assert [score.value for score in scores.scorers[0].scores] == [1.0, 0.0]
    asking = asyncio.get_running_loop().run_in_executor(None, ask, [hanging], 4)
    await asyncio.to_thread(wait_until, lambda: len(descendants(server.pid)) >= 5, 20)
    processes = descendants(server.pid)
    os.kill(server.pid, signal.SIGKILL)
    assert await asyncio.to_thread(wait_until, lambda: not any(map(is_alive, processes)), 10)
    with pytest.raises(Exception):  # noqa: B017, PT011 - nobody answers any more
        await asking


@pytest.mark.parametrize("site_packages", [False, True])
async def test_check_scores_a_sample_and_says_what_programs_may_not_import(
    site_packages: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {"type": "code", "name": "tests", "sandbox": "none", "entry_point_column": "f", "setup_column": "s"}
    path = tmp_path / "reward.yaml"
    path.write_text(json.dumps({"scorers": [{**config, "site_packages": site_packages}]}))
    code = await asyncio.to_thread(main, ["check", "--config", str(path)])
    printed = capsys.readouterr().out
    assert code == 0, printed
    told = "programs and tests may import Python's standard library only" in printed
    assert told is not site_packages
    if told:
        assert "and site_packages: true would allow them" in printed
        assert "numpy" in printed
