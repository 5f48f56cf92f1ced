"""Composite scorers for tests: of parts that say what they are told, and in a service."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from reward_server.config import config_from_mapping
from reward_server.scorers.base import Result, to_score
from reward_server.scorers.composite import CompositeScorer
from reward_server.scorers.registry import build, parse_options
from reward_server.serving.scorer_set import ScorerSet
from reward_server.types import Group, GroupScores, Score
from tests.support.builders import make_group


def part(name: str, **options: Any) -> dict[str, Any]:
    return {"type": "length", "name": name, "max": 5, **options}


def composite(*parts: dict[str, Any], **options: Any) -> CompositeScorer:
    names = parts or (part("a"), part("b"))
    scorer = build(parse_options({"type": "composite", "name": "c", "parts": list(names), **options}))
    assert isinstance(scorer, CompositeScorer)
    scorer.load()
    return scorer


class Said:
    """What each part says of each completion, by its text; and which completions each was asked for."""

    def __init__(self, scores: Mapping[str, Sequence[Any]], **logged: Any):
        self._scores = scores
        self._logged = logged
        self.asked: list[tuple[int, list[str]]] = []

    async def __call__(self, index: int, group: Group) -> Result:
        texts = [str(content) for content in group.contents()]
        self.asked.append((index, texts))
        said = [self._scores[text][index] for text in texts]
        return Result(tuple(s if isinstance(s, Score) else to_score(s) for s in said), **self._logged)


def composed(scorer: CompositeScorer, said: Said, texts: Sequence[str]) -> Result:
    return asyncio.run(scorer.compose(make_group(texts), said))


def value(scorer: CompositeScorer, *said: Any) -> Score:
    """The composite's score of one completion of which its parts said this."""
    return composed(scorer, Said({"x": said}), ["x"]).scores[0]


def served(scorers: Sequence[Any], *groups: Group, **config: Any) -> tuple[list[GroupScores], ScorerSet]:
    async def run() -> tuple[list[GroupScores], ScorerSet]:
        loaded = ScorerSet(config_from_mapping({"scorers": list(scorers), "workers": 1, **config}))
        await loaded.load()
        try:
            for group in groups:
                loaded.admit(group)
            return [await loaded.score(group) for group in groups], loaded
        finally:
            await loaded.close()

    return asyncio.run(run())
