"""A scorer that batches without a model: the length of a text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from reward_server.scorers.base import Result, ScorerOptions, to_score
from reward_server.scorers.batched import BatchedScorer, Sample
from reward_server.types import Group, Score


class Lengths(BatchedScorer[ScorerOptions]):
    """The length of a text, computed in batches of at most 100 characters."""

    Options = ScorerOptions
    max_batch_tokens = 100

    def prepare(self, group: Group) -> Sequence[Sample | Score]:
        return [Sample(str(content), len(content)) for content in group.contents()]

    def compute(self, data: Sequence[str], replica: int) -> Sequence[Any]:
        return [float(len(text)) for text in data]

    def finish(self, prepared: Sequence[Sample | Score], outputs: Sequence[Any]) -> Result:
        return Result([to_score(output) for output in outputs])
