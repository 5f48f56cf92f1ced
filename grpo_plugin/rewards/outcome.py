"""What became of a step's groups: one value, equal on every rank, with methods that read it.

Owns the reading of answers: values, failures, statuses, and what reward functions logged. Knows nothing of calls, of
the exchange between ranks, or of TRL, and decides nothing: that is the failure policy's (policies.py), which gets
`failed_BGS`.

Legend: N rows on this rank, R rows of the global batch, B groups of it, G completions of a group, S scorers.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from grpo_plugin.rewards.groups import GroupLayout
from reward_server.errors import CALLERS_FAULTS, DeadlineError
from reward_server.types import GroupScores, Score, ScorerScores, Status


@dataclass(frozen=True, slots=True)
class CallFailure:
    """The error of a group that has no answer, as text, which can be sent between ranks."""

    kind: str
    message: str

    @property
    def is_callers_fault(self) -> bool:
        """Whether the group, the wire or the credentials are at fault, and not the service: training then stops."""
        return self.kind in {error.__name__ for error in CALLERS_FAULTS}

    @property
    def is_late(self) -> bool:
        """Whether the step's deadline passed without an answer."""
        return self.kind == DeadlineError.__name__


Answer = GroupScores | CallFailure


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of every group of the global batch. `scorers` are the names in use, S."""

    answers: Mapping[int, Answer]
    layout: GroupLayout
    scorers: Sequence[str]
    latency_s: float
    exposed_wait_s: float

    def values_RS(self) -> list[list[float]]:
        """A row for each completion of the global batch, a column a scorer; NaN where there is no number."""
        return [[math.nan if s.value is None else s.value for s in row] for rows in self._scores_BGS() for row in rows]

    def failed_BGS(self) -> npt.NDArray[np.bool_]:
        """Which scores failed; all of a group that has no answer."""
        return np.array([[[s.status.is_failure for s in row] for row in rows] for rows in self._scores_BGS()], bool)

    def failures_R(self) -> list[dict[str, Score]]:
        """The failed scores of each completion of the global batch, by scorer."""
        return [
            {name: score for name, score in zip(self.scorers, row, strict=True) if score.status.is_failure}
            for rows in self._scores_BGS()
            for row in rows
        ]

    def statuses(self) -> Counter[Status]:
        """How often each status occurred, over completions and scorers; TIMEOUT or FAILED where there is no answer."""
        return Counter(score.status for rows in self._scores_BGS() for row in rows for score in row)

    def is_callers_fault(self) -> bool:
        """Whether some group could not be scored for a reason that only the trainer's side can mend."""
        return any(isinstance(answer, CallFailure) and answer.is_callers_fault for answer in self.answers.values())

    def digests(self) -> set[str]:
        """The configurations that scored this step."""
        return {answer.config_digest for answer in self.answers.values() if isinstance(answer, GroupScores)}

    def metrics(self) -> dict[str, list[float]]:
        """What the scorers' functions logged by `log_metric`: the values of the groups that this rank owns."""
        found: dict[str, list[float]] = {}
        for number in self.layout.owned():
            for scorer in self._named(number).values():
                for name, value in scorer.metrics.items():
                    found.setdefault(name, []).append(value)
        return found

    def extra_N(self) -> dict[str, list[Any]]:
        """What the scorers' functions logged by `log_extra`, for the rows of this rank; None where one logged nothing.

        Where two scorers log the same column, the later one's is named scorer/column.
        """
        groups = [self._named(number) for number in range(self.layout.groups)]
        columns_R: dict[str, list[Any]] = {}
        for scorer in self.scorers:
            logged = [group[scorer].extra if scorer in group else {} for group in groups]
            for name in dict.fromkeys(name for extra in logged for name in extra):
                nothing = [None] * self.layout.group_size
                values = [value for extra in logged for value in extra.get(name, nothing)]
                columns_R[f"{scorer}/{name}" if name in columns_R else name] = values
        start = self.layout.first_row
        return {name: values[start : start + self.layout.rows] for name, values in columns_R.items()}

    def summary(self) -> str | None:
        """What failed, how often, and the first message of each kind; None if nothing did."""
        kinds: dict[str, list[str]] = {}
        for kind, message in self._failures():
            kinds.setdefault(kind, []).append(message)
        if not kinds:
            return None
        lines = [f"  {len(messages)} × {kind}, the first: {messages[0]}" for kind, messages in kinds.items()]
        count = sum(len(messages) for messages in kinds.values())
        return f"{count} scores or groups of this step's {self.layout.groups} groups failed:\n" + "\n".join(lines)

    def _failures(self) -> Iterator[tuple[str, str]]:
        for number, rows in enumerate(self._scores_BGS()):
            answer = self.answers[number]
            if isinstance(answer, CallFailure):
                yield answer.kind, f"group {number}: {answer.message}"
                continue
            for index, row in enumerate(rows):
                for name, score in zip(self.scorers, row, strict=True):
                    if score.status.is_failure:
                        yield f"scorer {name!r} {score.status.name}", self._where(number, index, score)

    def _where(self, number: int, index: int, score: Score) -> str:
        return f"group {number}, completion {index}: {score.message}"

    def _scores_BGS(self) -> Iterator[list[list[Score]]]:
        """Each group's scores, a row for each completion; where there is no answer the score is a failure."""
        for number in range(self.layout.groups):
            named, absent = self._named(number), self._absent(number)
            columns = [named[name].scores if name in named else absent for name in self.scorers]
            yield [list(row) for row in zip(*columns, strict=True)]

    def _absent(self, number: int) -> Sequence[Score]:
        answer = self.answers[number]
        message = answer.message if isinstance(answer, CallFailure) else "the service no longer has this scorer"
        status = Status.TIMEOUT if isinstance(answer, CallFailure) and answer.is_late else Status.FAILED
        return [Score(status, message=message)] * self.layout.group_size

    def _named(self, number: int) -> dict[str, ScorerScores]:
        answer = self.answers[number]
        return {} if isinstance(answer, CallFailure) else {scorer.name: scorer for scorer in answer.scorers}
