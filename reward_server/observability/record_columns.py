"""A scored group as columns, on its way into a table of Parquet (`record_table`).

Owns what the server's event loop does of that way: as little as can be, and into few objects, since a server keeps
hundreds of groups and its garbage collector visits each object. What a group has once is kept once.

Legend: G completions of a group, S scorers.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from reward_server.observability.record_form import Training, text_of
from reward_server.types import Content, Group, GroupScores, ScorerScores

_Value = TypeVar("_Value")


class ScorerColumns(NamedTuple):
    """What one scorer said of a group: G scores; of statuses, messages and extras G, or one for all."""

    name: str
    version: str
    weight: float
    scores: tuple[float | None, ...]
    statuses: tuple[str, ...]
    messages: tuple[str, ...]
    extras: tuple[str, ...]


class GroupColumns(NamedTuple):
    """A group. Of prompts, columns and flags there are G or one for all; `completions` are all of them, in UTF-8."""

    size: int
    at: float
    run_id: str
    step: int
    group_id: str
    config_digest: str
    queued_s: float
    compute_s: float
    prompts: tuple[str, ...]
    prompts_are_messages: tuple[bool, ...]
    completions: bytes
    lengths: array[int]  # of the completions, in bytes
    completions_are_messages: tuple[bool, ...]
    columns: tuple[str, ...]
    rewards: tuple[float | None, ...]
    training: Training | None
    scorers: tuple[ScorerColumns, ...]

    @property
    def text_bytes(self) -> int:
        """Of the largest texts, about: a prompt is repeated for each completion."""
        repeated = max(map(len, self.prompts)) + max(map(len, self.columns))
        return len(self.completions) + 4 * self.size * repeated


def columns_of(group: Group, scores: GroupScores, at: float, training: Training | None = None) -> GroupColumns:
    """The columns of a scored group. Raises TypeError or ValueError for values that JSON cannot hold."""
    prompts = group.prompts() if any(each.prompt is not None for each in group.completions) else [group.prompt]
    contents = group.contents()
    texts = [text_of(content).encode() for content in contents]
    return GroupColumns(
        len(contents),
        at,
        group.run_id,
        group.step,
        group.group_id,
        scores.config_digest,
        scores.queued_s,
        scores.compute_s,
        tuple(map(text_of, prompts)),
        _are_messages(prompts),
        b"".join(texts),
        array("i", map(len, texts)),
        _are_messages(contents),
        _columns(group),
        tuple(scores.rewards()),
        training,
        tuple(map(_scorer, scores.scorers)),
    )


def _are_messages(contents: Sequence[Content]) -> tuple[bool, ...]:
    return _once([not isinstance(content, str) for content in contents])


def _once(values: Sequence[_Value]) -> tuple[_Value, ...]:
    """One value for all, if they are alike."""
    return tuple(values[:1] if len(set(values)) == 1 else values)


def _columns(group: Group) -> tuple[str, ...]:
    if not any(completion.columns for completion in group.completions):
        return (json.dumps(dict(group.columns)),)
    return tuple(json.dumps({**group.columns, **completion.columns}) for completion in group.completions)


def _scorer(scorer: ScorerScores) -> ScorerColumns:
    return ScorerColumns(
        scorer.name,
        scorer.version,
        scorer.weight,
        tuple([score.value for score in scorer.scores]),
        _once([score.status.name for score in scorer.scores]),
        _once([score.message and text_of(score.message) for score in scorer.scores]),
        _extras(scorer.extra) if scorer.extra else ("",),
    )


def _extras(extra: Mapping[str, Sequence[Any]]) -> tuple[str, ...]:
    """An object for each completion. Value by value, since `json.dumps` of a text takes half of that of a dict."""
    columns = [[f"{json.dumps(name)}: {json.dumps(value)}" for value in values] for name, values in extra.items()]
    return tuple(f"{{{', '.join(each)}}}" for each in zip(*columns, strict=True))
