"""What a group of 8 completions costs by kind of scorer, in seconds of one worker, as a running server says it."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from reward_server.client import RewardClient
from reward_server.launch import launch_server
from reward_server.types import Completion, Group, Status
from tests.benchmarks.load.reward_model import options, save_model
from tests.support.servers import function

_GROUPS = 20
_ANSWER = "First we add the numbers. " * 30 + r"So it is \boxed{%d}."
_PROGRAM = "```python\nprint(int(input()) + %d)\n```"


def scorers(folder: Path) -> dict[str, dict[str, Any]]:
    """A scorer of each kind that needs nothing but this machine."""
    code = {"type": "code", "column": "tests", "sandbox": "none"}
    return {
        "length (event loop)": {"type": "length", "max": 100},
        "a function (worker)": function("vowels"),
        "math (worker)": {"type": "math", "column": "answer"},
        "code (a process a test)": code,
        "a classifier of 0.4 M weights": options(save_model(folder)),
    }


def measure() -> dict[str, float]:
    """The median over some groups, by kind."""
    with tempfile.TemporaryDirectory() as folder:
        return {kind: _cost(scorer) for kind, scorer in scorers(Path(folder)).items()}


def _cost(scorer: dict[str, Any]) -> float:
    config = {"scorers": [{"timeout_s": 60, **scorer, "name": "one"}], "workers": 1}
    with launch_server(config, log_path="/dev/null") as server:
        with RewardClient(server.endpoint, timeout_s=120) as client:
            answers = [client.score(_group(number, scorer)) for number in range(_GROUPS)]
    assert all(answer.scorers[0].scores[0].status is Status.OK for answer in answers), answers[0]
    return statistics.median(answer.compute_s for answer in answers[2:])


def _group(number: int, scorer: dict[str, Any]) -> Group:
    text = _PROGRAM if scorer["type"] == "code" else _ANSWER
    completions = tuple(Completion(text % (10 * number + row)) for row in range(8))
    columns = {"answer": str(number), "tests": {"inputs": ["1"], "outputs": [str(number)]}}
    return Group(f"prompt {number}", completions, columns, group_id=str(number))


def groups_a_second(seconds: float = 2.0, in_flight: int = 16) -> float:
    """What one server process takes of groups that cost nothing: where its event loop ends."""
    config = {"scorers": [{"type": "length", "name": "short", "max": 100}]}
    with launch_server(config, log_path="/dev/null") as server:
        with RewardClient(server.endpoint, timeout_s=60) as client:
            began, done = time.perf_counter(), 0
            while time.perf_counter() < began + seconds:
                groups = [_group(done + number, {"type": "length"}) for number in range(in_flight)]
                for pending in [client.submit(group) for group in groups]:
                    pending.result()
                done += in_flight
            return done / (time.perf_counter() - began)
