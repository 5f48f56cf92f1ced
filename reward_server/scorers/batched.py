"""The base class of scorers whose model scores batches. Batches mix completions from different callers.

Owns the interface between such a scorer and the executor that batches it, in three steps: a group becomes samples, the
samples of several groups become outputs, and a group's outputs become its scores. Knows nothing of queues.
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
    """The model's input for one completion: `data`, whose type the scorer chooses, and its length in tokens."""

    data: Any
    tokens: int


class BatchedScorer(Scorer[OptionsT]):
    """A scorer that computes batches of several groups. `timeout_s` is the time limit of one batch, and of `prepare`.

    A score must not depend on the other samples of its batch.
    """

    place = ExecutorKind.BATCH

    @property
    def replicas(self) -> int:
        """The number of devices that hold the model; each computes one batch at a time. Known once loaded."""
        return 1

    @property
    @abstractmethod
    def max_batch_tokens(self) -> int:
        """The maximum of a batch's longest sample × its samples, in tokens. A longer sample is computed alone."""

    @abstractmethod
    def prepare(self, group: Group) -> Sequence[Sample | Score]:
        """For each completion a sample, or a score that needs no model. Never called from two threads at once."""

    @abstractmethod
    def compute(self, data: Sequence[Any], replica: int) -> Sequence[Any]:
        """Computes one output for each sample's data. Each replica calls it in a thread of its own.

        If it raises, the batch is retried in halves, until the sample at fault is alone.
        """

    @abstractmethod
    def finish(self, prepared: Sequence[Sample | Score], outputs: Sequence[Any]) -> Result:
        """The result of a group. An output that is a Score comes from `prepare`, or is a failed score."""

    def score(self, group: Group) -> Result:
        """Scores one group alone, on the first replica. The server's executor batches several groups instead."""
        prepared = self.prepare(group)
        outputs: list[Any] = [item if isinstance(item, Score) else None for item in prepared]
        samples = [(index, item) for index, item in enumerate(prepared) if isinstance(item, Sample)]
        for batch in batches([sample.tokens for _, sample in samples], self.max_batch_tokens):
            computed = self.compute([samples[row][1].data for row in batch], 0)
            for row, output in zip(batch, computed, strict=True):
                outputs[samples[row][0]] = output
        return self.finish(prepared, outputs)


def batches(lengths: Sequence[int], max_batch_tokens: int) -> Iterator[list[int]]:
    """Yields batches as row indices, the longest rows first. A batch padded to its longest row is within the limit."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if batch and lengths[batch[0]] * (len(batch) + 1) > max_batch_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
