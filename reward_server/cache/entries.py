"""What the cache keeps scores by, as, and in: keys, values, memory.

What a score is kept by: the scorer's options (but for its weight and time limit), version and source file, and the
completion with its prompt, token ids and columns. Run, step and group id are no part of it.

Owns the digests, the bytes of a value and the bound on memory. Knows nothing of who asks and of disks.

Legend: G completions of a group.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reward_server import __version__
from reward_server.execution.results import ScorerDescription, joined
from reward_server.scorers.base import Result, Scorer
from reward_server.scorers.loading import source_digest
from reward_server.types import Completion, Group, Score, Status

# What an entry's place in an OrderedDict costs beside its key and value: measured, rounded up.
_ENTRY_BYTES = 200
# No part of what a score is.
_NOT_IN_KEY = {"weight", "timeout_s"}


# ---------------------------------------------------------------------------------------------------------------- keys


@dataclass(frozen=True, slots=True)
class Keys:
    """What a group's scores are kept by: each completion's, G long, and the group's own."""

    each: tuple[bytes, ...]
    group: bytes

    @property
    def all(self) -> list[bytes]:
        return [self.group, *dict.fromkeys(self.each)]

    def joined(self, found: Mapping[bytes, Result]) -> Result | None:
        """The group's result out of what was found; None if something is missing."""
        if self.group in found:
            return found[self.group]
        if any(key not in found for key in self.each):
            return None
        return joined([found[key] for key in self.each])

    def part_of(self, group: Group, wanted: Sequence[bytes]) -> Group:
        """The group with the wanted completions only, in their order."""
        by_key = dict(zip(self.each, group.completions, strict=True))
        return dataclasses.replace(group, completions=tuple(by_key[key] for key in wanted))


def keys_of(identity: bytes, group: Group) -> Keys | None:
    """None for a group that holds what is no JSON, which cannot come by wire."""
    try:
        shared = _digest(group.prompt, group.columns)
        each = tuple(identity + _digest_of_completion(completion, group, shared) for completion in group.completions)
    except (TypeError, ValueError, RecursionError):
        return None
    return Keys(each, identity + hashlib.sha256(b"".join(each)).digest())


def _digest_of_completion(completion: Completion, group: Group, shared: bytes) -> bytes:
    """The same whether what it is scored by is its own or its group's."""
    if completion.prompt is not None or completion.columns:
        prompt = group.prompt if completion.prompt is None else completion.prompt
        shared = _digest(prompt, {**group.columns, **completion.columns})
    return hashlib.sha256(shared + _digest(completion.content, completion.token_ids)).digest()


def _digest(*values: Any) -> bytes:
    return hashlib.sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode()).digest()


def identity_of(scorer: Scorer, description: ScorerDescription) -> bytes:
    """What decides a scorer's scores. The source file is in it for kinds whose version is not kept by their author."""
    options = scorer.options.model_dump(mode="json", exclude=_NOT_IN_KEY)
    return _digest(__version__, options, description.version, description.group_aware, source_digest(type(scorer)))[:16]


# -------------------------------------------------------------------------------------------------------------- values


class MemoryStore:
    """The values that were used last, at most `max_bytes` of them with what holding them costs."""

    def __init__(self, max_bytes: int):
        self.max_bytes = max_bytes
        self.bytes = 0
        self.evicted = 0
        self._values: OrderedDict[bytes, bytes] = OrderedDict()

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: bytes) -> bytes | None:
        value = self._values.get(key)
        if value is not None:
            self._values.move_to_end(key)
        return value

    def put(self, key: bytes, value: bytes) -> None:
        """Keeps a value; those that were not used for longest leave for it."""
        if (old := self._values.pop(key, None)) is not None:
            self.bytes -= _cost(key, old)
        if _cost(key, value) > self.max_bytes:
            return
        self._values[key] = value
        self.bytes += _cost(key, value)
        while self.bytes > self.max_bytes:
            self.bytes -= _cost(*self._values.popitem(last=False))
            self.evicted += 1


def _cost(key: bytes, value: bytes) -> int:
    return len(key) + len(value) + _ENTRY_BYTES


def encoded(result: Result) -> bytes:
    scores = [[int(score.status), score.value, score.message] for score in result.scores]
    return json.dumps([scores, result.metrics, result.extra], separators=(",", ":")).encode()


def decoded(value: bytes) -> Result:
    scores, metrics, extra = json.loads(value)
    return Result(tuple(Score(Status(status), value, message) for status, value, message in scores), metrics, extra)


def split(keys: Sequence[bytes], result: Result) -> dict[bytes, Result]:
    """A result as one for each completion. Its metrics are the group's and in none of them."""
    return {
        key: Result((score,), {}, {name: [column[index]] for name, column in result.extra.items()})
        for index, (key, score) in enumerate(zip(keys, result.scores, strict=True))
    }
