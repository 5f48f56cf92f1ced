"""`reward-server rescore`: recorded completions scored again, as a user types it: real processes, real servers."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from reward_server.client import RewardClient
from reward_server.evaluation.recorded import read_records
from reward_server.evaluation.rescore import compare
from reward_server.launch import ServerProcess
from reward_server.observability.record_form import record_of
from tests.support.builders import make_group, make_scores
from tests.support.commands import reward_server, written


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


def test_records_of_other_texts_are_not_compared_whatever_their_names(tmp_path: Path) -> None:
    before, after = tmp_path / "before.jsonl", tmp_path / "after.jsonl"
    for path, texts in ((before, [["a", "b"], ["c"], ["d"]]), (after, [["a", "b"], ["c", "e"], ["f"]])):
        groups = [make_group(contents, group_id=name) for contents, name in zip(texts, ("g1", "g2", ""), strict=True)]
        records = [record_of(group, make_scores([1.0] * len(group)), at=0.0) for group in groups]
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    old, new = list(read_records([before])), list(read_records([after]))
    assert [one.record.group.group_id for one in compare(old, new).differences] == ["g1"]
