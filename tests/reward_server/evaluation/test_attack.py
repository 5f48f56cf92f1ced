"""`reward-server attack`: worthless completions, as a user types it: real processes, real servers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.commands import CONFIGS, WEAK, reward_server, written


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
