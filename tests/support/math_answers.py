"""The scorer `math` for tests, and what it scores."""

from __future__ import annotations

from typing import Any

from reward_server.scorers.base import Scorer
from reward_server.scorers.registry import build, parse_options
from tests.support.builders import make_group


def make(**options: Any) -> Scorer:
    scorer = build(parse_options({"type": "math", "name": "correct", **options}))
    scorer.load()
    return scorer


def values(scorer: Scorer, gold: Any, *completions: Any) -> list[float | None]:
    result = scorer.score(make_group(completions, columns={"answer": gold}))
    return [score.value for score in result.scores]  # type: ignore[union-attr]
