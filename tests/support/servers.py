"""Configurations of servers that tests start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

SCORING = Path(__file__).parent / "scoring.py"
BROKEN = Path(__file__).parent / "broken.py"


def function(name: str, **options: Any) -> dict[str, Any]:
    """A function scorer of tests/support/scoring.py, for a server's configuration."""
    return {"type": "function", "name": name, "function": f"{SCORING}:{name}", **options}


def broken(name: str, **options: Any) -> dict[str, Any]:
    """A function scorer of tests/support/broken.py."""
    return {"type": "function", "name": name, "function": f"{BROKEN}:{name}", **options}


def made(name: str, **kwargs: Any) -> dict[str, Any]:
    """A function that the factory make_NAME of tests/support/broken.py makes."""
    return broken(f"make_{name}", factory=True, kwargs=kwargs)


def slow_length(seconds: float, **kwargs: Any) -> dict[str, Any]:
    """A function that takes so many seconds, and scores the length."""
    return made("slow_length", seconds=seconds, **kwargs)
