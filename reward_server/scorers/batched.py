"""The base class of scorers whose model scores batches. Batches mix completions from different callers.

Owns the interface between such a scorer and the executor that batches it: a group becomes samples (`prepare`), the
samples of several groups become outputs, and a group's outputs become its scores (`finish`). Outputs are made in three
steps, so that a device computes one batch while the next is assembled and the last one's outputs are read:

    assemble: data of samples -> a batch      compute: a batch -> on the device      read: -> outputs

Knows nothing of queues.
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
        """The most tokens of a batch: its longest sample × its samples if it `pads`, else the sum of its samples.

        A longer sample is computed alone.
        """

    @property
    def pads(self) -> bool:
        """Whether the samples of a batch are padded to the longest one. Known once loaded."""
        return True

    @abstractmethod
    def prepare(self, group: Group) -> Sequence[Sample | Score]:
        """For each completion a sample, or a score that needs no model. Never called from two threads at once."""

    def assemble(self, data: Sequence[Any]) -> Any:
        """Makes a batch of samples' data, on the host. Called while the device computes another batch."""
        return data

    @abstractmethod
    def compute(self, batch: Any, replica: int) -> Any:
        """Computes a batch. Each replica calls it in a thread of its own. It need not wait for the device to end.

        If one of the steps raises, the batch is retried in halves, until the sample at fault is alone.
        """

    def read(self, computed: Any) -> Sequence[Any]:
        """One output for each sample, from what `compute` returned; waits for the device."""
        return computed

    def outputs(self, data: Sequence[Any], replica: int = 0) -> Sequence[Any]:
        """One output for each sample's data, all steps one after another."""
        return self.read(self.compute(self.assemble(data), replica))

    @abstractmethod
    def finish(self, prepared: Sequence[Sample | Score], outputs: Sequence[Any]) -> Result:
        """The result of a group. An output that is a Score comes from `prepare`, or is a failed score."""

    def score(self, group: Group) -> Result:
        """Scores one group alone, on the first replica. The server's executor batches several groups instead."""
        prepared = self.prepare(group)
        outputs: list[Any] = [item if isinstance(item, Score) else None for item in prepared]
        samples = [(index, item) for index, item in enumerate(prepared) if isinstance(item, Sample)]
        for batch in batches([sample.tokens for _, sample in samples], self.max_batch_tokens, self.pads):
            computed = self.outputs([samples[row][1].data for row in batch])
            for row, output in zip(batch, computed, strict=True):
                outputs[samples[row][0]] = output
        return self.finish(prepared, outputs)


def batches(lengths: Sequence[int], max_batch_tokens: int, pads: bool = True) -> Iterator[list[int]]:
    """Yields batches as row indices, the longest rows first. Each keeps to the limit, with its padding if it `pads`."""
    batch: list[int] = []
    tokens = 0
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        computed = lengths[batch[0]] * (len(batch) + 1) if batch and pads else tokens + lengths[index]
        if batch and computed > max_batch_tokens:
            yield batch
            batch, tokens = [], 0
        batch.append(index)
        tokens += lengths[index]
    if batch:
        yield batch
