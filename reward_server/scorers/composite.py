"""The scorer `composite`: combines the scores of several scorers, its parts, into one.

Owns the rules of combining. Knows nothing of where its parts run: the service runs each part in the executor of its
kind, with its own time limit and its own cache entries, and gives `compose` a function that asks it.

For each completion:

1. The parts that are `gates` are asked first, one after another in the order of `parts`. If a gate scores below its
   threshold, it is closed: all parts after it are not applicable to this completion and are not asked. A gate that is
   itself not applicable is open.
2. The other parts are asked side by side. A part that sees whole groups is asked for the whole group.
3. Each part's score is normalised and then clipped, if the options say so.
4. The applicable scores are combined: `sum` and `mean` are weighted by the parts' weights, `min` and `product` use the
   scores unweighted. The result is clipped by `clip`. If no part applies, the composite is not applicable.

If a part fails, the composite fails with the part's status and message, and a failed gate is closed. With `failed_part:
leave_out` a failed part, or gate, counts as not applicable instead; if no other part is left, the composite fails.

**Normalising and the digest.** With a running mean and deviation that change with every group, one completion could get
two scores, two replicas could disagree, a retry could differ from its first try, and the digest would change, at which
a trainer stops. So the statistics for normalising are fixed: they are read from `statistics` when the service loads,
and they are part of the scorer's version and so of the digest. Services of the same digest give the same score,
whatever each of them has seen. New scores are collected apart: with `gather` each service adds the raw scores that it
sees to another file, which the replicas of a machine may share. To use them, copy that file over the first and reload
or restart. The digest then changes once, and `allow_reward_change` says whether a trainer goes on.

Legend: G completions of a group.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import json
import logging
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, ValidationInfo, field_validator, model_validator

from reward_server.errors import InvalidGroupError, ScorerLoadError
from reward_server.scorers.base import ExecutorKind, Result, Scorer, ScorerOptions, to_score
from reward_server.scorers.loading import did_you_mean, find_path
from reward_server.scorers.registry import build, parse_options
from reward_server.scorers.statistics import Statistics, add_to_file, read_statistics
from reward_server.types import Group, Score, Status

log = logging.getLogger("reward_server")

Ask = Callable[[int, Group], Awaitable[Result]]
"""Asks the part of that index for the scores of a group."""

_COMBINED: Mapping[str, Callable[[Sequence[float], Sequence[float]], float]] = {
    "sum": lambda values, weights: math.fsum(v * w for v, w in zip(values, weights, strict=True)),
    "mean": lambda values, weights: math.fsum(v * w for v, w in zip(values, weights, strict=True)) / math.fsum(weights),
    "min": lambda values, _: min(values),
    "product": lambda values, _: math.prod(values),
}


class Normalise(BaseModel):
    """The statistics that normalise a part's scores, and the file that collects them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    statistics: str | None = Field(
        None, description="File with the mean and deviation that scores are normalised by; unset, they are not."
    )
    gather: str | None = Field(None, description="File that the raw scores of this service are added to.")

    @model_validator(mode="after")
    def _does_something(self) -> Normalise:
        if self.statistics is None and self.gather is None:
            raise ValueError("set gather to a file, and once that holds enough, statistics to a copy of it")
        if self.statistics is not None and self.statistics == self.gather:
            raise ValueError(f"statistics and gather are both {self.gather!r}; the first must stand still: copy it")
        return self


class CompositeOptions(ScorerOptions):
    """Options of `composite`."""

    parts: tuple[SerializeAsAny[ScorerOptions], ...] = Field(
        min_length=1, description="Scorers, each with type, name, weight and its own options, as in `scorers`."
    )
    combine: Literal["sum", "mean", "min", "product"] = Field(
        "sum", description="sum and mean are weighted by the parts' weights; min and product take none."
    )
    gates: dict[str, float] = Field(
        default_factory=dict,
        description="Parts by name, each with the lowest score that passes; below it the parts after it are not "
        "applicable.",
    )
    normalise: dict[str, Normalise] = Field(
        default_factory=dict, description="Parts by name, each with `statistics`, `gather` or both."
    )
    clip_parts: dict[str, tuple[float, float]] = Field(
        default_factory=dict,
        description="Parts by name, each with the lowest and the highest score that it may count as.",
    )
    clip: tuple[float, float] | None = Field(None, description="The lowest and the highest score of the composite.")
    failed_part: Literal["fail", "leave_out"] = Field(
        "fail", description="fail: if a part fails, the composite fails. leave_out: the part counts as not applicable."
    )

    @field_validator("parts", mode="before")
    @classmethod
    def _parsed(cls, parts: Any, info: ValidationInfo) -> Any:
        if not isinstance(parts, (list, tuple)):
            raise ValueError(f"must be a list of scorers, not {parts!r:.80}")
        base_dir = (info.context or {}).get("base_dir")
        return tuple(
            part if isinstance(part, ScorerOptions) else parse_options(part, f"parts[{index}]", base_dir)
            for index, part in enumerate(parts)
        )

    @model_validator(mode="after")
    def _fits_together(self) -> CompositeOptions:
        names = [part.name for part in self.parts]
        if len(set(names)) < len(names):
            raise ValueError(f"parts are named {', '.join(names)}; give each its own name")
        for option in ("gates", "normalise", "clip_parts"):
            for name in getattr(self, option):
                if name not in names:
                    hint = did_you_mean(name, names)
                    raise ValueError(f"{option} names {name!r}, and the parts are {', '.join(names)}{hint}")
        for low, high in [*self.clip_parts.values(), *([self.clip] if self.clip else [])]:
            if not low < high:
                raise ValueError(f"clipping to [{low:g}, {high:g}] leaves nothing; the first must be less")
        return self

    @model_validator(mode="after")
    def _weights_mean_something(self) -> CompositeOptions:
        weights = {part.name: part.weight for part in self.parts}
        if self.combine == "mean" and any(weight <= 0 for weight in weights.values()):
            raise ValueError(f"a mean's weights must be above 0, and they are {weights}; or set combine: sum")
        if self.combine in ("min", "product") and any(weight != 1 for weight in weights.values()):
            raise ValueError(f"{self.combine} takes no weights, and they are {weights}; leave them out")
        if "timeout_s" in self.model_fields_set:
            raise ValueError("a composite has no time limit of its own: set timeout_s of its parts")
        return self


class CompositeScorer(Scorer[CompositeOptions]):
    """One score from the scores of its parts, which the service runs."""

    Options = CompositeOptions
    place = ExecutorKind.LOOP

    def __init__(self, options: CompositeOptions):
        super().__init__(options)
        self._names = [part.name for part in options.parts]
        self.parts: tuple[Scorer, ...] = tuple(
            build(part.model_copy(update={"name": f"{options.name}/{part.name}"})) for part in options.parts
        )
        """Named `composite/part`, so that what is logged and counted tells them apart."""
        self._gates = [index for index, name in enumerate(self._names) if name in options.gates]
        self._others = [index for index, name in enumerate(self._names) if name not in options.gates]
        self._by: dict[str, Statistics] = {}
        self._gathered: dict[str, Statistics] = {}
        self._told = False

    @property
    def sample_columns(self) -> Mapping[str, Any]:
        return {name: value for part in self.parts for name, value in part.sample_columns.items()}

    @property
    def version(self) -> str:
        """The version of these rules, and a digest of the statistics for normalising. Known once loaded."""
        if not self._by:
            return "1"
        held = json.dumps({name: dataclasses.astuple(statistics) for name, statistics in self._by.items()})
        return f"1/{hashlib.sha256(held.encode()).hexdigest()[:12]}"

    @property
    def notes(self) -> tuple[str, ...]:
        """The notes of its parts."""
        return tuple(f"{part.name}: {note}" for part in self.parts for note in part.notes)

    def load(self) -> None:
        """Reads the statistics. The service loads the parts."""
        for name, normalise in self.options.normalise.items():
            if normalise.statistics is not None:
                self._by[name] = self._read(name, normalise.statistics)

    def score(self, group: Group) -> Result:
        raise TypeError("a composite's parts are run by the service, which calls compose()")

    async def compose(self, group: Group, ask: Ask) -> Result:
        """The composite's scores of a group, with what its parts logged and each part's mean score as a metric."""
        answers: list[_Answer] = [_Answer(len(group)) for _ in self.parts]
        open_rows = list(range(len(group)))
        for index in self._gates:
            await self._asked(index, group, open_rows, ask, answers[index])
            open_rows = [row for row in open_rows if self._is_open(index, answers[index].scores[row])]
        await _all([self._asked(index, group, open_rows, ask, answers[index]) for index in self._others])
        self._note(answers)
        scores = [self._combined([answer.scores[row] for answer in answers]) for row in range(len(group))]
        return Result(tuple(scores), self._metrics(answers), self._extra(answers))

    def save_gathered(self) -> None:
        """Adds the gathered scores to their files, in this thread. An error is logged once; unsaved scores are kept."""
        gathered, self._gathered = self._gathered, {}
        for name, statistics in gathered.items():
            path = self.options.base_dir / str(self.options.normalise[name].gather)
            try:
                add_to_file(path, statistics)
            except (OSError, ValueError) as error:
                self._gathered[name] = self._gathered.get(name, Statistics()).merged(statistics)
                if not self._told:
                    self._told = True
                    log.warning("scorer %r: scores cannot be gathered in %s (%s)", self.name, path, error)

    # ---------------------------------------------------------------------------------------------------------- asking

    async def _asked(self, index: int, group: Group, rows: Sequence[int], ask: Ask, answer: _Answer) -> None:
        """Asks a part for these rows of the group, and for no others unless it has to see them."""
        if not rows:
            return
        everything = range(len(group))
        if self.parts[index].group_aware:
            answer.take(await ask(index, group), everything, rows)
            return
        try:
            part = dataclasses.replace(group, completions=tuple(group.completions[row] for row in rows))
            answer.take(await ask(index, part if len(rows) < len(group) else group), rows, rows)
        except InvalidGroupError:
            if len(rows) == len(group):
                raise
            answer.take(await ask(index, group), everything, rows)  # the part may need the rest of the group

    def _is_open(self, index: int, score: Score) -> bool:
        if score.value is None:
            return score.status is Status.NOT_APPLICABLE or self.options.failed_part == "leave_out"
        return score.value >= self.options.gates[self._names[index]]

    # ------------------------------------------------------------------------------------------------------- combining

    def _combined(self, scores: Sequence[Score]) -> Score:
        """One completion's scores, one a part, as one."""
        failures = [(name, s) for name, s in zip(self._names, scores, strict=True) if s.status.is_failure]
        applicable = [(index, s.value) for index, s in enumerate(scores) if s.value is not None]
        if failures and (self.options.failed_part == "fail" or not applicable):
            name, failure = failures[0]
            return Score(failure.status, message=f"part {name!r}: {failure.message}")
        if not applicable:
            return Score(Status.NOT_APPLICABLE)
        values = [self._prepared(self._names[index], value) for index, value in applicable]
        weights = [self.options.parts[index].weight for index, _ in applicable]
        try:
            value = _COMBINED[self.options.combine](values, weights)
        except (OverflowError, ValueError):  # fsum of numbers near the largest
            value = math.inf
        return to_score(_clipped(value, self.options.clip) if math.isfinite(value) else value)

    def _prepared(self, name: str, value: float) -> float:
        if name in self._by:
            value = self._by[name].normalised(value)
        return _clipped(value, self.options.clip_parts.get(name))

    def _note(self, answers: Sequence[_Answer]) -> None:
        for name, answer in zip(self._names, answers, strict=True):
            if name in self.options.normalise and self.options.normalise[name].gather is not None:
                seen = Statistics.of(answer.values())
                if not math.isfinite(seen.squares):
                    continue
                self._gathered[name] = self._gathered.get(name, Statistics()).merged(seen)

    def _metrics(self, answers: Sequence[_Answer]) -> dict[str, float]:
        """What the parts logged, averaged where two use one name, and `composite/part`: the part's mean raw score."""
        logged: dict[str, list[float]] = {}
        for part, answer in zip(self.parts, answers, strict=True):
            for name, value in answer.metrics.items():
                logged.setdefault(name, []).append(value)
            if values := answer.values():
                logged.setdefault(part.name, []).append(sum(values) / len(values))
        return {name: sum(values) / len(values) for name, values in logged.items()}

    def _extra(self, answers: Sequence[_Answer]) -> dict[str, Sequence[Any]]:
        """The parts' extra columns, None where a part was not asked; one whose name is taken gets its part's before."""
        extra: dict[str, Sequence[Any]] = {}
        for part, answer in zip(self.parts, answers, strict=True):
            for name, column in answer.extra.items():
                extra[f"{part.name}/{name}" if name in extra else name] = column
        return extra

    def _read(self, name: str, file: str) -> Statistics:
        path = find_path(file, self.options.base_dir)
        what = f"scorer {self.name!r}: normalise.{name}.statistics {file!r}"
        if path is None:
            raise ScorerLoadError(f"{what}: there is no such file; gather first: set gather, and leave statistics out")
        try:
            statistics = read_statistics(path)
        except (OSError, ValueError) as error:
            raise ScorerLoadError(f"{what} cannot be read: {error}") from error
        if not statistics.std > 0:
            raise ScorerLoadError(
                f"{what}: it holds {statistics.count} scores of deviation {statistics.std:g}, which nothing can be "
                "normalised by; gather more"
            )
        return statistics


class _Answer:
    """A part's scores of a group's G rows: not applicable for rows that it was not asked about."""

    def __init__(self, size: int):
        self.scores: list[Score] = [Score(Status.NOT_APPLICABLE)] * size
        self.metrics: Mapping[str, float] = {}
        self.extra: dict[str, list[Any]] = {}
        self._size = size

    def take(self, result: Result, asked: Sequence[int], wanted: Sequence[int]) -> None:
        """Takes the wanted rows of a result, whose own rows are those that were asked for."""
        self.metrics = result.metrics
        self.extra = {name: [None] * self._size for name in result.extra}
        kept = set(wanted)
        for place, row in enumerate(asked):
            if row in kept:
                self.scores[row] = result.scores[place]
                for name, column in result.extra.items():
                    self.extra[name][row] = column[place]

    def values(self) -> list[float]:
        return [score.value for score in self.scores if score.value is not None]


def _clipped(value: float, bounds: tuple[float, float] | None) -> float:
    return value if bounds is None else min(max(value, bounds[0]), bounds[1])


async def _all(asked: Sequence[Awaitable[None]]) -> None:
    """All of them side by side; the first exception ends the others and is raised as it is."""
    tasks = [asyncio.ensure_future(one) for one in asked]
    try:
        await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
