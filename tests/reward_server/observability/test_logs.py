"""The log as JSON: one object a line, with the names of the call, and without what was scored."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reward_server.client import RewardClient
from reward_server.observability import logs
from tests.support.builders import make_group
from tests.support.served import misbehaving


@pytest.fixture
def events(tmp_path: Path) -> Iterator[list[dict[str, Any]]]:
    """What `serve --log-format json` has logged of a good call and a bad one."""
    config = tmp_path / "c.yaml"
    config.write_text(json.dumps({"scorers": [misbehaving()], "workers": 1}))
    command = [sys.executable, "-m", "reward_server.cli", "serve", "--config", str(config), "--log-level", "debug"]
    command += ["--log-format", "json", "--listen", f"unix:{tmp_path}/s"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        while "on unix:" not in process.stdout.readline():
            pass
        with RewardClient(f"unix:{tmp_path}/s", token="secret-token") as client:
            client.score(make_group(["some-completion"], prompt="some-prompt", run_id="r1", step=7, group_id="g1"))
            client.score(make_group(["raise"], run_id="r1", step=8, group_id="g2"))
        process.terminate()
        _, errors = process.communicate(timeout=30)
    yield [json.loads(line) for line in errors.splitlines()]
    assert "some-" not in errors
    assert "secret" not in errors


def test_each_event_of_a_call_names_run_step_and_group(events: list[dict[str, Any]]) -> None:
    named = {(event.get("run_id"), event.get("step"), event.get("group_id")) for event in events}
    assert named == {("r1", 7, "g1"), ("r1", 8, "g2"), (None, None, None)}
    [failure] = [event for event in events if event["level"] == "warning"]
    assert (failure["step"], failure["group_id"]) == (8, "g2")
    assert "TypeError: first line second line" in failure["message"]
    ends = [event for event in events if event["message"] == "ScoreGroup: OK"]
    assert [event["group_id"] for event in ends] == ["g1", "g2"]
    assert all(event["code"] == "OK" and event["seconds"] > 0 for event in ends)


def test_an_exception_is_one_line_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logs.JSONFormatter())
    logger = logging.getLogger("reward_server.test")
    logger.addHandler(handler)
    try:
        raise ValueError("of two\nlines")
    except ValueError:
        logger.exception("it %s", "failed")
    finally:
        logger.removeHandler(handler)
    event = json.loads(capsys.readouterr().err)
    assert (event["message"], event["level"]) == ("it failed", "error")
    assert event["exception"].endswith("ValueError: of two\nlines")
    assert event["time"].endswith("Z")
