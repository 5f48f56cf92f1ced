"""The entries of the cache: the key of a score, and the bytes of its value.

The key of a score is made of the scorer's options (without its weight and time limit), its version and source file, and
of the completion with its prompt, token ids and columns. Run, step and group id are not part of it.

Owns the digests and the encoding. Knows nothing of callers, memory and disks.

Legend: G completions of a group.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reward_server import __version__
from reward_server.execution.results import ScorerDescription, join_results
from reward_server.scorers.base import Result, Scorer
from reward_server.scorers.loading import source_digest
from reward_server.types import Completion, Group, Score, Status

# These options do not change a score.
_NOT_IN_KEY = {"weight", "timeout_s"}


# ---------------------------------------------------------------------------------------------------------------- keys


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of a group's scores: one for each of its G completions, and one for the group as a whole."""

    each: tuple[bytes, ...]
    group: bytes

    @property
    def all(self) -> list[bytes]:
        return [self.group, *dict.fromkeys(self.each)]

    def joined(self, found: Mapping[bytes, Result]) -> Result | None:
        """The group's result, joined from what was found; None if something is missing."""
        if self.group in found:
            return found[self.group]
        if any(key not in found for key in self.each):
            return None
        return join_results([found[key] for key in self.each])

    def part_of(self, group: Group, wanted: Sequence[bytes]) -> Group:
        """The group with only the wanted completions, in the order of `wanted`."""
        by_key = dict(zip(self.each, group.completions, strict=True))
        return dataclasses.replace(group, completions=tuple(by_key[key] for key in wanted))


def keys_of(identity: bytes, group: Group) -> Keys | None:
    """The keys of a group; None if it holds values that are not JSON, which cannot arrive over the wire."""
    try:
        shared = _digest(group.prompt, group.columns)
        each = tuple(identity + _digest_of_completion(completion, group, shared) for completion in group.completions)
    except (TypeError, ValueError, RecursionError):
        return None
    return Keys(each, identity + hashlib.sha256(b"".join(each)).digest())


def _digest_of_completion(completion: Completion, group: Group, shared: bytes) -> bytes:
    """The same digest whether prompt and columns are given with the completion or with its group."""
    if completion.prompt is not None or completion.columns:
        prompt = group.prompt if completion.prompt is None else completion.prompt
        shared = _digest(prompt, {**group.columns, **completion.columns})
    return hashlib.sha256(shared + _digest(completion.content, completion.token_ids)).digest()


def _digest(*values: Any) -> bytes:
    return hashlib.sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode()).digest()


def identity_of(scorer: Scorer, description: ScorerDescription) -> bytes:
    """What determines a scorer's scores. Its source file counts too, since authors may forget to change the version."""
    options = scorer.options.model_dump(mode="json", exclude=_NOT_IN_KEY)
    return _digest(__version__, options, description.version, description.group_aware, source_digest(type(scorer)))[:16]


# -------------------------------------------------------------------------------------------------------------- values


def encode(result: Result) -> bytes:
    """The bytes of a result."""
    scores = [[int(score.status), score.value, score.message] for score in result.scores]
    return json.dumps([scores, result.metrics, result.extra], separators=(",", ":")).encode()


def decode(value: bytes) -> Result:
    """The result whose bytes these are."""
    scores, metrics, extra = json.loads(value)
    return Result(tuple(Score(Status(status), value, message) for status, value, message in scores), metrics, extra)


def split(keys: Sequence[bytes], result: Result) -> dict[bytes, Result]:
    """Splits a result into one for each completion. Its metrics are the group's, and are in none of them."""
    return {
        key: Result((score,), {}, {name: [column[index]] for name, column in result.extra.items()})
        for index, (key, score) in enumerate(zip(keys, result.scores, strict=True))
    }
