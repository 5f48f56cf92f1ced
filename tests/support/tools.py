"""Programs of others that tests use, and how each is installed."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest


def tool(name: str, install: str) -> str:
    """The path of a program. Where it is missing the test fails in CI, which installs it, and is skipped elsewhere."""
    found = shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    if found is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"this needs {name}: {install}")
    return found
