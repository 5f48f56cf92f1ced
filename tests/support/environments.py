"""Environments of their own for tests: other versions of what we depend on, without this suite's packages.

Owns how they are made and kept, under `build/`. Each is made once, from a package index.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "build/environments"

# What a server has beside the client's packages, of those that are built on grpcio and protobuf.
SERVES = ("grpcio-health-checking", "grpcio-reflection")


def floors() -> dict[str, str]:
    """The oldest version that pyproject.toml allows of each package that clients and small servers need."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [*project["dependencies"], *project["optional-dependencies"]["server"]]
    pairs = dict(text.split(">=") for text in asked if ">=" in text and ";" not in text)
    needed = [text.partition(">=")[0] for text in project["dependencies"]]
    return {name: pairs[name] for name in (*needed, *SERVES)}


def python_with(requirements: Sequence[str]) -> Path:
    """The Python of an environment that has these packages, and what they need, and no others."""
    name = hashlib.sha256("\n".join(requirements).encode()).hexdigest()[:12]
    folder = FOLDER / name
    if not folder.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=FOLDER) as made:
            _make(Path(made) / "environment", requirements)
            if not folder.exists():  # or else another process was first
                (Path(made) / "environment").rename(folder)
    return folder / "bin/python"


def _make(folder: Path, requirements: Sequence[str]) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True, timeout=60)
    (packages,) = folder.glob("lib/python*/site-packages")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--target", packages, *requirements]
    subprocess.run(command, check=True, capture_output=True, timeout=600)
