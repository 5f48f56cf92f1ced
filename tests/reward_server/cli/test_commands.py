"""`reward-server` from the shell: what it prints, and that its exit codes are true."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from reward_server.cli.main import main
from reward_server.launch import launch_server

FILE = Path(__file__).parents[2] / "support" / "misbehaving.py"
CONFIGS = Path(__file__).parents[3] / "configs" / "reward"
LENGTH = {"type": "length", "name": "short", "max": 3}
MATCH = {"type": "match", "name": "right", "column": "answer", "weight": 2.0}


@pytest.fixture
def config(tmp_path: Path) -> Any:
    """Writes a configuration of the given scorers and returns its path."""

    def write(*scorers: dict[str, Any], **rest: Any) -> str:
        path = tmp_path / "reward.yaml"
        path.write_text(json.dumps({"scorers": list(scorers), **rest}))
        return str(path)

    return write


def out_of(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().out


def error_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What a command that is refused says: one error, no traceback, exit code 1."""
    assert main(arguments) == 1
    text = capsys.readouterr().err
    assert text.startswith("error: ")
    assert "Traceback" not in text
    return text


# --------------------------------------------------------------------------------------------------------------- score


def test_score_prints_completions_by_scorers_aligned(config: Any, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--prompt", "p", "--completion", "ab", "--completion", "wrong", "--column", 'answer="ab"']
    assert main(["score", "--config", config(LENGTH, MATCH), *arguments]) == 0
    assert out_of(capsys).splitlines() == [
        "   completion  short  right  reward",
        "-----------------------------------",
        "0  ab              1      1       3",
        "1  wrong           0      0       0",
    ]


def test_score_prints_json_a_group_a_line(config: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"prompt": "p", "completions": ["ab"], "answer": "ab"},
        {
            "prompt": [{"role": "user", "content": "q"}],
            "completions": [[{"role": "assistant", "content": "x"}]],
            "answer": "y",
        },
    ]
    (tmp_path / "groups.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    path = str(tmp_path / "groups.jsonl")
    assert main(["score", "--config", config(LENGTH, MATCH), "--input", path, "--json"]) == 0
    first, second = (json.loads(line) for line in out_of(capsys).splitlines())
    assert first["rewards"] == [3.0]
    assert first["scorers"]["right"]["statuses"] == ["OK"]
    assert second["scorers"]["right"]["scores"] == [0.0]


def test_score_asks_a_running_server(capsys: pytest.CaptureFixture[str]) -> None:
    with launch_server({"scorers": [LENGTH, MATCH]}) as server:
        code = main(["score", "--endpoint", server.endpoint, "--completion", "ab", "--scorer", "short", "--json"])
    assert code == 0
    assert list(json.loads(out_of(capsys))["scorers"]) == ["short"]


def test_score_exits_with_1_and_says_why_where_a_score_failed(config: Any, capsys: pytest.CaptureFixture[str]) -> None:
    obeys = {"type": "function", "name": "obeys", "function": f"{FILE}:obeys"}
    assert main(["score", "--config", config(obeys), "--completion", "raise", "--completion", "ab"]) == 1
    lines = out_of(capsys).splitlines()
    assert "FAILED" in lines[2]
    assert lines[-1] == "obeys: FAILED: TypeError: first line second line"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "there is nothing to score: give --completion TEXT or --input FILE"),
        (["--completion", "a", "--column", "answer"], "must have the form NAME=JSON"),
        (["--completion", "a", "--column", "answer=four"], "answer='\"four\"'"),
        (["--completion", "a", "--scorer", "shrot"], "did you mean 'short'?"),
        (["--completion", "a"], "scorer 'right' needs the column 'answer', and the group has none"),
        (["--input", "/no/such.jsonl"], "cannot read /no/such.jsonl"),
        (["--input", "/dev/null"], "/dev/null holds no rows"),
        (["--input", "/dev/null", "--completion", "a"], "the rows of --input have their own completions"),
    ],
)
def test_score_refuses_bad_input(
    config: Any, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert message in error_of(capsys, "score", "--config", config(LENGTH, MATCH), *arguments)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"prompt": "p", "completions": ["a"]}\n{"prompt": ', "line 2 is not JSON"),
        ('{"prompt": "p"}', 'row 1 must be an object with "prompt" and a list "completions"'),
        ('{"prompt": "p", "completions": []}', '"completions" is empty'),
        ('{"prompt": "p", "completions": [3]}', "3 is neither text nor a list of messages"),
    ],
)
def test_a_bad_row_is_named(
    config: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    (tmp_path / "rows.jsonl").write_text(text)
    assert message in error_of(capsys, "score", "--config", config(LENGTH), "--input", str(tmp_path / "rows.jsonl"))


def test_an_endpoint_that_nobody_answers_at_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert "127.0.0.1:1" in error_of(
        capsys, "score", "--endpoint", "127.0.0.1:1", "--completion", "a", "--timeout-s", "5"
    )


# --------------------------------------------------------------------------------------------------------------- check


def test_check_tells_every_scorer_and_scores_a_sample(config: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--config", config(LENGTH, MATCH)]) == 0
    text = out_of(capsys)
    assert "short: length; version 1; weight 1; deterministic; runs in: loop" in text
    assert "right: match; version 1; weight 2; deterministic; needs answer; runs in: loop" in text
    assert "completion" in text


@pytest.mark.slow
@pytest.mark.parametrize("name", ["math", "heuristics", "functions", "composite"])
def test_check_accepts_the_shipped_configurations(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--config", str(CONFIGS / f"{name}.yaml")]) == 0, capsys.readouterr().err


def test_check_takes_a_sample_of_the_users(config: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sample = tmp_path / "sample.json"
    sample.write_text(json.dumps({"prompt": "p", "completions": ["abc"], "answer": "abc"}))
    assert main(["check", "--config", config(MATCH), "--sample", str(sample)]) == 0
    assert out_of(capsys).splitlines()[-1] == "0  abc             1       2"


def test_check_fails_where_a_score_does(config: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sample = tmp_path / "sample.json"
    sample.write_text(json.dumps({"prompt": "p", "completions": ["raise"]}))
    obeys = {"type": "function", "name": "obeys", "function": f"{FILE}:obeys"}
    assert main(["check", "--config", config(obeys), "--sample", str(sample)]) == 1
    assert "TypeError: first line second line" in out_of(capsys)


@pytest.mark.parametrize("command", ["check", "serve"])
def test_a_bad_configuration_is_one_clear_error(config: Any, capsys: pytest.CaptureFixture[str], command: str) -> None:
    text = error_of(capsys, command, "--config", config({**LENGTH, "wieght": 2}))
    assert "scorers[0].wieght = 2: unknown key, did you mean 'weight'?" in text
    assert "there is no configuration file /no/such.yaml" in error_of(capsys, command, "--config", "/no/such.yaml")


def test_code_that_does_not_import_shows_the_users_traceback(
    config: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "f.py").write_text("import no_such_module\n")
    scorer = {"type": "function", "name": "f", "function": "f.py:f"}
    assert main(["check", "--config", config(scorer)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: f.py:f: importing")
    assert "No module named 'no_such_module'" in error
    assert "worker_process.py" not in error


# --------------------------------------------------------------------------------------------------------------- serve


def test_serve_says_what_it_serves_and_where(config: Any) -> None:
    path = config(LENGTH)
    command = [sys.executable, "-m", "reward_server.cli", "serve", "--config", path, "--listen", "127.0.0.1:0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(3)]
        process.terminate()
        assert process.wait(10) == 0
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()
    assert lines[0].startswith("serving 1 scorers, configuration ")
    assert lines[1] == "  short: length; version 1; weight 1; deterministic\n"
    assert lines[2].startswith("on 127.0.0.1:")


def test_serve_refuses_the_open_network_without_the_word(config: Any, capsys: pytest.CaptureFixture[str]) -> None:
    text = error_of(capsys, "serve", "--config", config(LENGTH), "--listen", "0.0.0.0:0")
    assert "permit it with --insecure" in text


def test_a_configuration_can_come_by_standard_input() -> None:
    command = [sys.executable, "-m", "reward_server.cli", "check", "--config", "-"]
    run = subprocess.run(
        command, input=json.dumps({"scorers": [LENGTH]}), capture_output=True, text=True, timeout=60, check=False
    )
    assert (run.returncode, run.stderr) == (0, "")
