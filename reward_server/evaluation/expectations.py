"""What a case expects of scores, as values: a number, a bound, a status, an order of completions.

Owns their reading from YAML and their check. Pure. A number that is expected is never met by a failed score.

    expectation = expectation_of({"min": 0.5})
    expectation.problems(scores_G)         one line for each completion that does not meet it; none if all do

Legend: G completions of a group.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from reward_server.errors import InvalidGroupError
from reward_server.types import Score, Status

_FORMS = (
    "a number, {value: 1, tolerance: 0.1}, {min: 0, max: 1}, {status: failed}, {better: [0, 1]}, "
    "or a list of those, one for each completion"
)
_CLOSE = 1e-6  # relative and absolute: float32 models and sums of weights differ by less


class Expectation(Protocol):
    """What is expected of the scores of one scorer, or of the rewards, of a case's G completions."""

    def problems(self, scores_G: Sequence[Score]) -> list[str]: ...


@dataclass(frozen=True, slots=True)
class Value:
    """A number, to within a tolerance: absolute if it is given, else one part in a million."""

    value: float
    tolerance: float | None = None

    def problem(self, score: Score) -> str | None:
        if score.value is not None and self._is_close(score.value):
            return None
        within = "" if self.tolerance is None else f" ± {self.tolerance:g}"
        return f"expected {self.value:g}{within}, got {shown(score)}"

    def _is_close(self, value: float) -> bool:
        if self.tolerance is None:
            return math.isclose(value, self.value, rel_tol=_CLOSE, abs_tol=_CLOSE)
        return abs(value - self.value) <= self.tolerance + _CLOSE * abs(self.value)


@dataclass(frozen=True, slots=True)
class Bound:
    """A number between two others, each of which may be open."""

    least: float = -math.inf
    most: float = math.inf

    def problem(self, score: Score) -> str | None:
        if score.value is not None and self.least <= score.value <= self.most:
            return None
        parts = [f"at least {self.least:g}"] * (self.least > -math.inf) + [f"at most {self.most:g}"] * (
            self.most < math.inf
        )
        return f"expected {' and '.join(parts)}, got {shown(score)}"


@dataclass(frozen=True, slots=True)
class HasStatus:
    """A status, such as NOT_APPLICABLE; OK is any number."""

    status: Status

    def problem(self, score: Score) -> str | None:
        return None if score.status is self.status else f"expected {self.status.name}, got {shown(score)}"


OneScore = Value | Bound | HasStatus


@dataclass(frozen=True, slots=True)
class Each:
    """One expectation for each completion; None expects nothing of it. A single one is of every completion."""

    of: tuple[OneScore | None, ...]

    def problems(self, scores_G: Sequence[Score]) -> list[str]:
        of_G = self.of * len(scores_G) if len(self.of) == 1 else self.of
        found = []
        for index, (expected, score) in enumerate(zip(of_G, scores_G, strict=True)):
            if expected is not None and (problem := expected.problem(score)) is not None:
                found.append(f"completion {index}: {problem}")
        return found


@dataclass(frozen=True, slots=True)
class Better:
    """Completions by their index, from the best to the worst: each score is above the next one."""

    order: tuple[int, ...]

    def problems(self, scores_G: Sequence[Score]) -> list[str]:
        return [
            f"expected completion {better} above completion {worse}, "
            f"got {shown(scores_G[better])} and {shown(scores_G[worse])}"
            for better, worse in itertools.pairwise(self.order)
            if not _is_above(scores_G[better], scores_G[worse])
        ]


def _is_above(better: Score, worse: Score) -> bool:
    return better.value is not None and worse.value is not None and better.value > worse.value


def shown(score: Score) -> str:
    """A score as a report prints it: its number, or its status and message."""
    if score.value is not None:
        return f"{score.value:g}"
    return f"{score.status.name}: {score.message}" if score.message else score.status.name


# ------------------------------------------------------------------------------------------------------------- reading


def expectation_of(told: Any, completions: int, where: str) -> Expectation:
    """The expectation that a case writes down. `where` begins the message of InvalidGroupError."""
    if isinstance(told, Mapping) and "better" in told:
        if set(told) != {"better"}:
            raise InvalidGroupError(f"{where}: `better` stands alone, and {told!r:.80} has other keys")
        return better_of(told["better"], completions, f"{where}.better")
    if isinstance(told, Sequence) and not isinstance(told, str):
        if len(told) != completions:
            raise InvalidGroupError(f"{where} has {len(told)} entries and the case has {completions} completions")
        return Each(tuple(None if one is None else _one(one, f"{where}[{i}]") for i, one in enumerate(told)))
    return Each((_one(told, where),))


def better_of(told: Any, completions: int, where: str) -> Better:
    is_order = isinstance(told, Sequence) and len(told) > 1 and all(_is_index(index, completions) for index in told)
    if not is_order or len(set(told)) != len(told):
        raise InvalidGroupError(
            f"{where} lists at least two different completions by index, 0 to {completions - 1}, best first; "
            f"not {told!r:.80}"
        )
    return Better(tuple(told))


def _is_index(value: Any, completions: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < completions


def _one(told: Any, where: str) -> OneScore:
    if isinstance(told, Mapping):
        return _of_mapping(told, where)
    return Value(_number(told, where))


def _of_mapping(told: Mapping[str, Any], where: str) -> OneScore:
    match sorted(told):
        case ["value"] | ["tolerance", "value"]:
            tolerance = None if "tolerance" not in told else _number(told["tolerance"], f"{where}.tolerance")
            return Value(_number(told["value"], f"{where}.value"), tolerance)
        case ["max"] | ["min"] | ["max", "min"]:
            given = {name: _number(value, f"{where}.{name}") for name, value in told.items()}
            return Bound(given.get("min", -math.inf), given.get("max", math.inf))
        case ["status"]:
            return HasStatus(_status(told["status"], f"{where}.status"))
    raise InvalidGroupError(f"{where}: {dict(told)!r:.80} is not understood; write {_FORMS}")


def _number(told: Any, where: str) -> float:
    if isinstance(told, bool) or not isinstance(told, (int, float)) or not math.isfinite(told):
        raise InvalidGroupError(f"{where}: {told!r:.80} is not understood; write {_FORMS}")
    return float(told)


def _status(told: Any, where: str) -> Status:
    name = str(told).upper()
    if name not in Status.__members__:
        raise InvalidGroupError(f"{where}: there is no status {told!r}; there are {', '.join(Status.__members__)}")
    return Status[name]
