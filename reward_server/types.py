"""The values that client and server exchange: a group, its scores, and a server's info.

Owns the dataclasses and nothing else. Knows nothing of protobuf, gRPC, configuration or kinds of scorers.

Legend: G completions of a group, S scorers.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from reward_server.frozen import quick

WIRE_VERSION = 1

Message = Mapping[str, Any]
"""One chat message as TRL holds it: role, content, and whatever else (tool_calls, name, …)."""

Content = str | Sequence[Message]
"""Standard text, or a conversation."""


class Status(enum.IntEnum):
    """The outcome of one scorer for one completion. The numbers are those of the wire."""

    OK = 1
    NOT_APPLICABLE = 2
    INVALID = 3
    TIMEOUT = 4
    FAILED = 5

    @property
    def is_failure(self) -> bool:
        """Whether a score was due and there is none: INVALID, TIMEOUT and FAILED."""
        return self not in (Status.OK, Status.NOT_APPLICABLE)


@quick
@dataclass(frozen=True, slots=True)
class Score:
    """The score of one completion by one scorer. `value` is a finite float if the status is OK, and None otherwise."""

    status: Status
    value: float | None = None
    message: str = ""


@quick
@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled output.

    `token_ids` is None unless they were asked for. `columns` holds the columns that differ between the completions of a
    group, and `prompt` is given only if it differs from the group's.
    """

    content: Content
    token_ids: tuple[int, ...] | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)
    prompt: Content | None = None


@quick
@dataclass(frozen=True, slots=True)
class Group:
    """One prompt and its G completions: the unit of scoring. A group is scored whole, and once.

    `columns` are the other columns of the prompt's row in the dataset. `scorers` are the names of the scorers to run;
    empty means all of them.
    """

    prompt: Content
    completions: tuple[Completion, ...]
    columns: Mapping[str, Any] = field(default_factory=dict)
    run_id: str = ""
    step: int = 0
    group_id: str = ""
    scorers: tuple[str, ...] = ()

    @classmethod
    def of_rows(
        cls,
        prompts: Sequence[Content],
        contents: Sequence[Content],
        token_ids: Sequence[Sequence[int]] | None = None,
        columns: Sequence[Mapping[str, Any]] | None = None,
        **names: Any,
    ) -> Group:
        """A group of G rows as a trainer holds them. A value that all rows share is stored once.

        `columns` holds the dataset columns of each row; `names` are run_id, step, group_id and scorers.
        """
        columns = [{}] * len(prompts) if columns is None else columns
        shared = {
            name: value
            for name, value in columns[0].items()
            if all(name in row and _is_same(row[name], value) for row in columns[1:])
        }
        completions = tuple(
            Completion(
                content=content,
                token_ids=None if token_ids is None else tuple(token_ids[index]),
                columns={name: value for name, value in columns[index].items() if name not in shared},
                prompt=None if _is_same(prompts[index], prompts[0]) else prompts[index],
            )
            for index, content in enumerate(contents)
        )
        return cls(prompts[0], completions, shared, **names)

    def __len__(self) -> int:
        """G."""
        return len(self.completions)

    def prompts(self) -> list[Content]:
        """The prompt of each completion, G long."""
        return [self.prompt if c.prompt is None else c.prompt for c in self.completions]

    def contents(self) -> list[Content]:
        """The text or messages of each completion, G long."""
        return [c.content for c in self.completions]

    def column(self, name: str) -> list[Any]:
        """The values of a column, G long. Raises KeyError if a completion has no such column."""
        return [c.columns[name] if name in c.columns else self.columns[name] for c in self.completions]

    def column_names(self) -> list[str]:
        """The names of the columns that the group or at least one completion has, the group's first."""
        return list(dict.fromkeys([*self.columns, *(name for c in self.completions for name in c.columns)]))


@dataclass(frozen=True, slots=True)
class Sample:
    """One completion that is sent alone, and what its group is called: the server gathers the `of` samples of a group.

    The completion holds all its columns. `index` is its position in the group, from 0; a caller that does not know it
    gives `sample_id`, any string that is unique in the group and the same when the sample is sent again. The
    first sample waits `gather_s` seconds for the others (None or 0: 60); then the scores are TIMEOUT, or those of the
    samples that are there if `score_incomplete`. Without a `group_id` a sample is a group of its own.
    """

    prompt: Content
    completion: Completion
    of: int = 1
    index: int = 0
    sample_id: str = ""
    run_id: str = ""
    step: int = 0
    group_id: str = ""
    scorers: tuple[str, ...] = ()
    gather_s: float | None = None
    score_incomplete: bool = False


def all_ok(scores: Sequence[Score]) -> bool:
    """Whether every score has the status OK. Each group is asked, so it is one pass without a call a score."""
    statuses = [score.status for score in scores]
    return statuses.count(_OK) == len(statuses)


_OK = Status.OK  # as an attribute of its class it takes longer than the rest of a score


def group_of(samples: Sequence[Sample]) -> Group:
    """The group of samples that have the same names. Where some have token ids, a sample without them has none."""
    first, token_ids = samples[0], [sample.completion.token_ids for sample in samples]
    return Group.of_rows(
        [sample.prompt for sample in samples],
        [sample.completion.content for sample in samples],
        [ids or () for ids in token_ids] if any(token_ids) else None,
        [sample.completion.columns for sample in samples],
        run_id=first.run_id,
        step=first.step,
        group_id=first.group_id,
        scorers=first.scorers,
    )


def _is_same(a: Any, b: Any) -> bool:
    try:
        return a is b or (type(a) is type(b) and bool(a == b))
    except (
        ValueError
    ):  # arrays compare by element; JSON cannot hold them either, and sending them raises an error that names them
        return False


@quick
@dataclass(frozen=True, slots=True)
class ScorerScores:
    """The G scores of a group by one scorer, and what its function logged by TRL's `log_metric` and `log_extra`.

    `metrics` are means over the group; each of the `extra` columns is G long.
    """

    name: str
    version: str
    weight: float
    scores: tuple[Score, ...]
    metrics: Mapping[str, float] = field(default_factory=dict)
    extra: Mapping[str, Sequence[Any]] = field(default_factory=dict)


@quick
@dataclass(frozen=True, slots=True)
class GroupScores:
    """The scores of a group by S scorers, in the order of the server's configuration."""

    group_id: str
    scorers: tuple[ScorerScores, ...]
    config_digest: str = ""
    queued_s: float = 0.0
    compute_s: float = 0.0

    def rewards(self) -> list[float | None]:
        """The weighted sum of scores of each completion, G long; None if a score failed or no scorer applies."""
        return [_weighted_sum(self.scorers, index) for index in range(len(self.scorers[0].scores))]


@dataclass(frozen=True, slots=True)
class SampleScores:
    """The scores of one sample: `scores` has G = 1. `group_size` completions were scored together, 0 if none were."""

    scores: GroupScores
    group_size: int


def _weighted_sum(scorers: Sequence[ScorerScores], index: int) -> float | None:
    total, applies = 0.0, False
    for scorer in scorers:  # a plain loop takes half the time of comprehensions, and each recorded completion pays it
        score = scorer.scores[index]
        if score.status is Status.NOT_APPLICABLE:
            continue
        if score.value is None:
            return None
        total, applies = total + scorer.weight * score.value, True
    return total if applies else None


@dataclass(frozen=True, slots=True)
class ScorerInfo:
    """The description of one scorer of a server. `kind` is its `type` in the configuration."""

    name: str
    kind: str
    version: str
    weight: float
    deterministic: bool
    group_aware: bool
    required_columns: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of a server: the longest group in bytes, the most completions in a group and groups in a call.

    `max_groups` is 0 for a server that takes one group a call.
    """

    max_group_bytes: int
    max_completions: int
    max_groups: int = 0


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """The description of a server. Two servers with the same `config_digest` give the same rewards."""

    wire_version: int
    server_version: str
    config_digest: str
    scorers: tuple[ScorerInfo, ...]
    limits: Limits
