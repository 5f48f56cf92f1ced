"""A scorer whose model scores many completions at once, whosever they are.

Owns the protocol between such a scorer and the place that batches it, in three steps: a group becomes samples, the
samples of any groups become outputs, a group's outputs become its scores. Knows nothing of queues.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from reward_server.scorers.base import ExecutorKind, OptionsT, Result, Scorer
from reward_server.types import Group, Score


@dataclass(frozen=True, slots=True)
class Sample:
    """What a model is to see of one completion: the scorer's own `data`, and its length in tokens."""

    data: Any
    tokens: int


class BatchedScorer(Scorer[OptionsT]):
    """Scores by batches that are made of several groups. `timeout_s` is the limit of one batch, and of `prepare`.

    A score must not depend on what else is in its batch.
    """

    place = ExecutorKind.BATCH

    @property
    def replicas(self) -> int:
        """On how many devices the model is; each gets one batch at a time. Known once loaded."""
        return 1

    @property
    @abstractmethod
    def max_batch_tokens(self) -> int:
        """Most tokens of a batch, counted as its longest sample × its samples. A longer sample goes alone."""

    @abstractmethod
    def prepare(self, group: Group) -> Sequence[Sample | Score]:
        """For each completion a sample, or the score that it has without the model. Not beside itself."""

    @abstractmethod
    def compute(self, data: Sequence[Any], replica: int) -> Sequence[Any]:
        """An output for each sample's data, in a thread of that replica's own.

        What it raises of several is tried again in halves, until the sample at fault is alone.
        """

    @abstractmethod
    def finish(self, prepared: Sequence[Sample | Score], outputs: Sequence[Any]) -> Result:
        """A group's result; where there is a Score among the outputs, `prepare` or a failure gave it."""

    def score(self, group: Group) -> Result:
        """One group for itself, on the first replica: what the place does for many."""
        prepared = self.prepare(group)
        outputs: list[Any] = [item if isinstance(item, Score) else None for item in prepared]
        samples = [(index, item) for index, item in enumerate(prepared) if isinstance(item, Sample)]
        for batch in batches([sample.tokens for _, sample in samples], self.max_batch_tokens):
            computed = self.compute([samples[row][1].data for row in batch], 0)
            for row, output in zip(batch, computed, strict=True):
                outputs[samples[row][0]] = output
        return self.finish(prepared, outputs)


def batches(lengths: Sequence[int], max_batch_tokens: int) -> Iterator[list[int]]:
    """Indices of rows in batches, the longest rows first; a batch padded to its longest row keeps to the limit."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if batch and lengths[batch[0]] * (len(batch) + 1) > max_batch_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
