"""The quickstart's own reward functions, in TRL's signature: an example of what a `function` scorer runs.

They run in the reward service's worker processes. Standard library only.

Legend: G completions of a group.
"""

from __future__ import annotations

from typing import Any


def letters_in_place(completions: list[str], answer: list[str], **_: Any) -> list[float]:
    """The share of letters that stand where they should, G values from 0 to 1: partial credit."""
    return [_share(completion, right) for completion, right in zip(completions, answer, strict=True)]


def _share(completion: str, right: str) -> float:
    hits = sum(a == b for a, b in zip(completion, right, strict=False))
    return hits / max(len(completion), len(right))


def constant(completions: list[str], **_: Any) -> list[float]:
    """Nothing to tell good from bad by, G zeros: the control experiment."""
    return [0.0] * len(completions)
