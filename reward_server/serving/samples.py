"""Samples: completions that are sent one by one. Each is checked, joins its cohort here or at a peer, and is answered.

Owns the way from the bytes of a ScoreCompletion request to the bytes of its response. `cohort_calls` gathers, `peers`
knows the other processes of the same server, and the service scores the whole group as it scores any other.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable, Sequence

from reward_server import wire
from reward_server.config import LimitsConfig
from reward_server.errors import InvalidGroupError
from reward_server.observability.metrics import Metrics
from reward_server.serving.cohort_calls import CohortCalls
from reward_server.serving.cohorts import check_sample
from reward_server.serving.scorer_set import ScorerSet
from reward_server.types import Group, GroupScores, Sample, Score, ScorerScores, Status, group_of

ScoreGroup = Callable[[bytes, Group], Awaitable[bytes]]
"""Scores a group, given as a serialised request and decoded, and returns the serialised ScoreGroupResponse."""


class Samples:
    """The samples that are in this process."""

    def __init__(self, metrics: Metrics, limits: LimitsConfig):
        self.calls = CohortCalls(metrics, limits)

    async def answer(
        self, request_bytes: int, sample: Sample, token_name: str, scorers: ScorerSet, score: ScoreGroup
    ) -> bytes:
        """The serialised response to a sample. Raises as `CohortCalls.answer`, and as `ScorerSet.admit`."""
        scorers.admit(group_of([sample]))  # who is at fault is told at once, and not all callers of the group
        if not sample.group_id:
            _refuse_group_aware(sample, scorers)
            return (await _scored(group_of([sample]), score))[0]
        scorers.admit_size(sample.of, sample.group_id)
        return await self.calls.answer(
            (token_name, sample.run_id, sample.group_id),
            sample,
            request_bytes,
            lambda group: _scored(group, score),
            lambda why: _encoded(_unscored(sample, scorers, why), 0),
        )


def parsed(request: bytes) -> Sample:
    """A serialised request as a sample. Raises InvalidGroupError if it is none."""
    sample = wire.parse_sample(request)
    check_sample(sample)
    return sample


async def _scored(group: Group, score: ScoreGroup) -> Sequence[bytes]:
    answer = await score(wire.encode_group(group).SerializeToString(), group)
    scores = wire.decode_scores(wire.pb.ScoreGroupResponse.FromString(answer))
    return [_encoded(_of_completion(scores, index), len(group)) for index in range(len(group))]


def _of_completion(scores: GroupScores, index: int) -> GroupScores:
    scorers = [
        dataclasses.replace(
            scorer,
            scores=(scorer.scores[index],),
            extra={name: [values[index]] for name, values in scorer.extra.items()},
        )
        for scorer in scores.scorers
    ]
    return dataclasses.replace(scores, scorers=tuple(scorers))


def _unscored(sample: Sample, scorers: ScorerSet, why: str) -> GroupScores:
    missing = (Score(Status.TIMEOUT, message=why),)
    return GroupScores(
        sample.group_id,
        tuple(ScorerScores(info.name, info.version, info.weight, missing) for info in scorers.infos(sample.scorers)),
        scorers.info.config_digest,
    )


def _refuse_group_aware(sample: Sample, scorers: ScorerSet) -> None:
    aware = [info.name for info in scorers.infos(sample.scorers) if info.group_aware]
    if aware:
        raise InvalidGroupError(
            f"scorers {aware} compare the completions of a group, and this completion was sent without a group_id: "
            "send the group's name, size and index with each of its completions, or leave these scorers out"
        )


def _encoded(scores: GroupScores, group_size: int) -> bytes:
    return wire.encode_sample_scores(scores, group_size).SerializeToString()
