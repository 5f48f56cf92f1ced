"""Scorers of the kind `code` for tests, and groups of programs to score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from reward_server.scorers.base import Result
from reward_server.scorers.code import CodeScorer
from reward_server.scorers.registry import build, parse_options
from tests.support.builders import make_group

ADD_ONE = "```python\nprint(int(input()) + 1)\n```"
TESTS = {"inputs": ["1", "41", "-1"], "outputs": ["2", "42", "0"]}


def make(**options: Any) -> CodeScorer:
    scorer = build(parse_options({"type": "code", "name": "tests", "time_limit_s": 0.5, **options}))
    assert isinstance(scorer, CodeScorer)
    return scorer


async def loaded(**options: Any) -> CodeScorer:
    scorer = make(**options)
    await scorer.load()
    return scorer


def sharing(scorer: CodeScorer, **options: Any) -> CodeScorer:
    """A scorer of other options about scoring, in the same sandbox."""
    other = make(**options)
    other._runners = scorer._runners
    return other


async def result(scorer: CodeScorer, completions: Sequence[Any], tests: Any, **columns: Any) -> Result:
    return await scorer.score(make_group(completions, columns={"tests": tests, **columns}))


async def values(scorer: CodeScorer, completions: Sequence[Any], tests: Any, **columns: Any) -> list[float | None]:
    return [score.value for score in (await result(scorer, completions, tests, **columns)).scores]
