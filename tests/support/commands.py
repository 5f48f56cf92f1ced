"""The command `reward-server` as a user types it, and the files that it is given."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from reward_server.cli.main import main

ROOT = Path(__file__).parents[2]
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
