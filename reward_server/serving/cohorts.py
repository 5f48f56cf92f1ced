"""Cohorts: the samples of one group that arrive one by one, until the group is whole.

Owns which samples belong together, what contradicts what, how much may be gathered at once, and the answers that are
kept for calls that come again. Takes the time as a value, and knows nothing of calls, tasks or scoring.

    cohorts = Cohorts(max_completions, max_bytes)
    cohort = cohorts.joined(key, sample, request_bytes, now)        raises InvalidGroupError, OverloadedError
    cohort.is_complete, cohort.samples(), cohort.closes_at
    cohorts.finish(key, cohort, answers, now)       the answers are kept for a while
    cohorts.drop(key, cohort)                       as if it had never been

There is room for a sample whose cohort has begun, since a cohort that is refused its last sample would hold its room
until its time is over. So a cohort counts `of` completions, and `of` times the bytes of its first, from the beginning.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

from reward_server.errors import GroupTooLargeError, InvalidGroupError, OverloadedError
from reward_server.types import Sample

CohortKey = tuple[str, str, str]
"""Name of the caller's token, run, group: callers with different tokens never meet."""

SampleName = int | str
"""`index`, or `sample_id`."""

_GATHER_S = 60.0
_LONGEST_GATHER_S = 3600.0
_PUSHBACK_S = 0.5
# A retry comes within the deadline of its call, which is minutes for a slow judge.
_KEPT_S = 600.0
_MOST_KEPT_SAMPLES = 65_536
_MOST_KEPT_BYTES = 64 << 20
_NAMES = "a group_id may not be used again in another step"


class Cohort:
    """The samples of one group that have come so far, and their answers once there are any."""

    def __init__(self, first: Sample, request_bytes: int, now: float):
        self.of = first.of
        self.first = first
        self.closes_at = now + min(first.gather_s or _GATHER_S, _LONGEST_GATHER_S)
        """When it is given up, or scored as it is; once it is finished, when its answers are forgotten."""
        self.answers: Mapping[SampleName, bytes] | None = None
        self.refused: bytes | None = None
        """The answer to samples that come after an incomplete cohort was closed."""
        self.request_bytes = 0
        self._least_bytes = self.of * request_bytes
        self._samples: dict[SampleName, Sample] = {}
        self._digests: dict[SampleName, bytes] = {}

    def __len__(self) -> int:
        """How many samples there are."""
        return len(self._digests)

    @property
    def is_complete(self) -> bool:
        return len(self) == self.of

    @property
    def held_bytes(self) -> int:
        """What it counts for: at least `of` times its first sample."""
        return max(self._least_bytes, self.request_bytes)

    def names(self) -> list[SampleName]:
        """The names of its samples in the order of the group: by index, or else as they came."""
        names = list(self._digests)
        return names if self.first.sample_id else sorted(names)

    def samples(self) -> list[Sample]:
        """Its samples in the order of `names`."""
        return [self._samples[name] for name in self.names()]

    def knows(self, sample: Sample) -> bool:
        """Whether the sample has come before. Raises InvalidGroupError if it contradicts what has come."""
        for name in ("of", "step", "scorers", "score_incomplete"):
            if (ours := getattr(self.first, name)) != (theirs := getattr(sample, name)):
                raise _contradiction(sample, f"{name} is {theirs!r}, and was {ours!r} in an earlier call")
        if bool(self.first.sample_id) != bool(sample.sample_id):
            raise _contradiction(sample, "all its calls give a sample_id, or none does")
        known = self._digests.get(name_of(sample))
        if known is not None and known != _digest(sample):
            why = f"sample {name_of(sample)!r} came before with another prompt, completion or column; {_NAMES}"
            raise _contradiction(sample, why)
        if known is None and self.is_complete:
            raise _contradiction(sample, f"it has {self.of} samples, and {name_of(sample)!r} is one more; {_NAMES}")
        return known is not None

    def add(self, sample: Sample, request_bytes: int) -> None:
        """Adds a sample that it does not know."""
        self._samples[name_of(sample)] = sample
        self._digests[name_of(sample)] = _digest(sample)
        self.request_bytes += request_bytes

    def answer_to(self, sample: Sample) -> bytes | None:
        """The answer to a sample. None before the cohort is finished."""
        return None if self.answers is None else self.answers.get(name_of(sample), self.refused)

    def close(self, answers: Mapping[SampleName, bytes], refused: bytes, forgotten_at: float) -> None:
        """Keeps the answers, and lets the texts go."""
        self.answers, self.refused, self.closes_at = answers, refused, forgotten_at
        self._samples.clear()


class Cohorts:
    """All cohorts of a server: those that gather or are being scored, and the finished ones that are remembered."""

    def __init__(self, max_completions: int, max_bytes: int, max_group_bytes: int):
        self._open: dict[CohortKey, Cohort] = {}
        self._kept: dict[CohortKey, Cohort] = {}  # the oldest first
        self._kept_samples = self._kept_bytes = 0
        self._completions = 0
        self._bytes = 0
        self.resize(max_completions, max_bytes, max_group_bytes)

    def resize(self, max_completions: int, max_bytes: int, max_group_bytes: int) -> None:
        """Changes the bounds for samples that come from now on."""
        self._max_completions = max_completions
        self._max_bytes = max_bytes
        self._max_group_bytes = max_group_bytes

    def __len__(self) -> int:
        """How many cohorts are not finished."""
        return len(self._open)

    def joined(self, key: CohortKey, sample: Sample, request_bytes: int, now: float) -> Cohort:
        """The cohort of a sample, which is in it from now on.

        Raises InvalidGroupError for a sample that contradicts another, GroupTooLargeError, and OverloadedError if
        there is no room for another cohort.
        """
        self._forget(now)
        cohort = self._open.get(key, self._kept.get(key))
        if cohort is None:
            self._refuse_large(sample, request_bytes)
            cohort = self._begun(key, sample, request_bytes, now)
        elif cohort.knows(sample) or cohort.answers is not None:
            return cohort
        held_bytes = cohort.held_bytes
        self._refuse_large(sample, cohort.request_bytes + request_bytes)
        self._refuse_beyond(0, cohort.request_bytes + request_bytes - held_bytes, len(self._open) - 1)
        cohort.add(sample, request_bytes)
        self._bytes += cohort.held_bytes - held_bytes
        return cohort

    def finish(
        self,
        key: CohortKey,
        cohort: Cohort,
        answers: Mapping[SampleName, bytes],
        refused: bytes,
        now: float,
    ) -> None:
        """Keeps the answers of a cohort for calls that come again; `refused` is for samples that come too late."""
        self.drop(key, cohort)
        cohort.close(answers, refused, now + _KEPT_S)
        self._kept[key] = cohort
        self._count_kept(cohort, 1)
        self._forget(now)

    def drop(self, key: CohortKey, cohort: Cohort) -> None:
        """Forgets a cohort that is not finished."""
        if self._open.get(key) is cohort:
            del self._open[key]
            self._completions -= cohort.of
            self._bytes -= cohort.held_bytes

    def _begun(self, key: CohortKey, sample: Sample, request_bytes: int, now: float) -> Cohort:
        cohort: Cohort = Cohort(sample, request_bytes, now)
        self._refuse_beyond(cohort.of, cohort.held_bytes, len(self._open))
        self._open[key] = cohort
        self._completions += cohort.of
        self._bytes += cohort.held_bytes
        return cohort

    def _refuse_large(self, sample: Sample, request_bytes: int) -> None:
        if request_bytes > self._max_group_bytes:
            raise GroupTooLargeError(
                f"group {sample.group_id!r} is {request_bytes} bytes with this sample, and this server takes "
                f"{self._max_group_bytes}: raise limits.max_group_bytes in its configuration, or send fewer columns"
            )

    def _refuse_beyond(self, completions: int, request_bytes: int, others: int) -> None:
        """Raises OverloadedError if there is no room for more. A single cohort is always taken."""
        if not others or (not completions and request_bytes <= 0):
            return
        if self._completions + completions > self._max_completions or self._bytes + request_bytes > self._max_bytes:
            raise OverloadedError(
                f"{len(self._open)} groups are being gathered ({self._completions} completions, {self._bytes} bytes), "
                f"and this server takes {self._max_completions} ({self._max_bytes} bytes); retry later, or raise "
                "limits.max_queued_completions and limits.max_queued_bytes in its configuration",
                retry_after_s=_PUSHBACK_S,
                reason="cohorts",
            )

    def _forget(self, now: float) -> None:
        while self._kept:
            key, oldest = next(iter(self._kept.items()))
            is_full = self._kept_samples > _MOST_KEPT_SAMPLES or self._kept_bytes > _MOST_KEPT_BYTES
            if oldest.closes_at > now and not is_full:
                return
            del self._kept[key]
            self._count_kept(oldest, -1)

    def _count_kept(self, cohort: Cohort, sign: int) -> None:
        self._kept_samples += sign * cohort.of
        self._kept_bytes += sign * sum(map(len, (cohort.answers or {}).values()))


def name_of(sample: Sample) -> SampleName:
    return sample.sample_id or sample.index


def check_sample(sample: Sample) -> None:
    """Raises InvalidGroupError for a sample whose own fields contradict one another."""
    if not sample.group_id:
        if sample.of > 1:
            raise InvalidGroupError(f"a sample without a group_id is a group of its own, and `of` is {sample.of}")
        return
    if sample.of < 1:
        raise _contradiction(sample, f"`of` is {sample.of}, and says how many completions the group has")
    if not sample.sample_id and sample.index >= sample.of:
        raise _contradiction(sample, f"index {sample.index} is not below of = {sample.of}; indices begin at 0")
    if not 0 <= (sample.gather_s or 0.0) < float("inf"):
        raise _contradiction(sample, f"gather_s is {sample.gather_s}, and is a number of seconds")
    if sample.completion.prompt is not None:
        raise _contradiction(sample, "the prompt of a sample is its own, and the completion has another")


def late_or_missing(cohort: Cohort, waited_s: float) -> str:
    """Why a cohort was closed before it was complete."""
    return (
        f"{len(cohort)} of the {cohort.of} completions of group {cohort.first.group_id!r} came to this server within "
        f"{waited_s:g} s: raise gather_s, or see that all callers reach the same server (not through a balancer that "
        "spreads their calls)"
    )


def _contradiction(sample: Sample, why: str) -> InvalidGroupError:
    return InvalidGroupError(f"group {sample.group_id!r}: {why}")


def _digest(sample: Sample) -> bytes:
    """Of what may not change when a sample is sent again. `gather_s` may."""
    completion = sample.completion
    content = (sample.prompt, completion.content, completion.token_ids, completion.columns)
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).digest()
