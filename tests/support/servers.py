"""Configurations of servers that tests start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

SCORING = Path(__file__).parent / "scoring.py"


def function(name: str, **options: Any) -> dict[str, Any]:
    """A function scorer of tests/support/scoring.py, for a server's configuration."""
    return {"type": "function", "name": name, "function": f"{SCORING}:{name}", **options}
