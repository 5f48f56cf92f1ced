"""Scorers for tests of adapters: one that grades a completion by the column `answer`, and one that compares a group."""

from __future__ import annotations

from typing import Any


def graded(completions: list[Any], answer: list[str], **_: Any) -> list[float | None]:
    """1 for the answer and 0 for another text. `skip` is not applicable, and `raise` raises."""
    texts = [text if isinstance(text, str) else text[-1]["content"] for text in completions]
    if "raise" in texts:
        raise ValueError("told to raise")
    return [None if text == "skip" else float(text == right) for text, right in zip(texts, answer, strict=True)]


def rank(group: Any) -> list[float]:
    """How many of the other completions are shorter."""
    lengths = [len(str(completion)) for completion in group.contents()]
    return [float(sum(other < length for other in lengths)) for length in lengths]
