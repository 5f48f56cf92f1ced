"""A scorer by its type and options, what it scores, and what is wrong with options."""

from __future__ import annotations

from typing import Any

import pytest

from reward_server.errors import ConfigError
from reward_server.scorers.base import Scorer
from reward_server.scorers.registry import build, parse_options
from tests.support.builders import make_group


def make(type: str, **options: Any) -> Scorer:
    scorer = build(parse_options({"type": type, "name": "h", **options}))
    scorer.load()
    return scorer


def values(scorer: Scorer, *completions: Any, **columns: Any) -> list[float | None]:
    result = scorer.score(make_group(completions, columns=columns))
    return [score.value for score in result.scores]  # type: ignore[union-attr]


def problem_of(type: str, **options: Any) -> str:
    with pytest.raises(ConfigError) as raised:
        parse_options({"type": type, "name": "h", **options})
    return str(raised.value)
