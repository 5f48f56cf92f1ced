"""The Makefile: every target is listed by `make help`, and pre-commit runs what `make lint` runs."""

from __future__ import annotations

import subprocess
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]


def test_make_help_lists_every_target_with_what_it_does() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = next(line for line in makefile.splitlines() if line.startswith(".PHONY:")).split()[1:]
    done = subprocess.run(
        ["make", "--no-print-directory", "help"], cwd=ROOT, capture_output=True, text=True, timeout=30, check=True
    )
    listed = {line.split()[1]: line.split(maxsplit=2)[2] for line in done.stdout.splitlines()}
    assert list(listed) == targets
    assert all(listed.values())


def test_pre_commit_runs_the_commands_of_make_lint() -> None:
    dry = subprocess.run(["make", "-n", "lint"], cwd=ROOT, capture_output=True, text=True, timeout=30, check=True)
    commands = [line.removesuffix(" .") for line in dry.stdout.splitlines() if line.startswith(".venv/bin/")]
    lint = [command for command in commands if "pip" not in command]
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    entries = [hook["entry"].replace(" --force-exclude", "") for repo in config["repos"] for hook in repo["hooks"]]
    assert entries == lint


def test_the_quickstart_needs_nothing_that_training_and_serving_do_not() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(extras["quickstart"]) <= {*extras["train"], *extras["server"]}
