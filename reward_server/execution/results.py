"""What an executor returns for a group: a validated result with its times, or an error that says why there is none.

Owns the validation of what scorers return, third parties' scorers included: the number of scores is right, they are
finite, and everything in the result can be sent. Knows nothing of where a scorer ran.

Legend: G completions of a group.
"""

from __future__ import annotations

import json
import logging
import math
import os
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import reward_server
from reward_server.errors import InvalidGroupError
from reward_server.frozen import quick
from reward_server.scorers.base import Result, Scorer, failed, to_score
from reward_server.types import Score, Status

log = logging.getLogger("reward_server")

_LONGEST_MESSAGE = 500
_PACKAGE = os.path.dirname(reward_server.__file__) + os.sep


class NoResultError(Exception):
    """A scorer gave no result: it raised, exceeded its time limit or its process died.

    `message` is one line for the caller and `details` is for the server's log. `retry_alone` says whether scoring the
    completions one by one can show which of them is at fault. `cost_worker` says that a worker process was lost.
    """

    def __init__(
        self, status: Status, message: str, details: str = "", retry_alone: bool = True, cost_worker: bool = False
    ):
        super().__init__(message)
        self.status = status
        self.message = message
        self.details = details
        self.retry_alone = retry_alone
        self.cost_worker = cost_worker


@quick
@dataclass(frozen=True, slots=True)
class TimedResult:
    """A result, the seconds that its group waited in queues and the seconds that scoring took."""

    result: Result
    queued_s: float = 0.0
    compute_s: float = 0.0


@dataclass(frozen=True, slots=True)
class ScorerDescription:
    """The properties of a scorer that are known once it is loaded where it runs."""

    version: str
    required_columns: tuple[str, ...]
    deterministic: bool
    group_aware: bool


def describe(scorer: Scorer) -> ScorerDescription:
    """The description of a loaded scorer."""
    return ScorerDescription(
        str(scorer.version), tuple(scorer.required_columns), bool(scorer.deterministic), bool(scorer.group_aware)
    )


def failure_from(error: BaseException) -> NoResultError:
    """The failure for an exception that user code raised. Re-raises InvalidGroupError, which blames the group."""
    if isinstance(error, InvalidGroupError):
        raise error
    return NoResultError(Status.FAILED, one_line(error), _users_traceback(error))


def _users_traceback(error: BaseException) -> str:
    """The traceback from the first frame outside of this package; the whole traceback if there is no such frame."""
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename.startswith(_PACKAGE):
        frames = frames.tb_next
    return "".join(traceback.format_exception(type(error), error, frames or error.__traceback__))


def one_line(error: BaseException) -> str:
    """`TypeError: message`, without line breaks and traceback."""
    text = " ".join(str(error).split())
    name = type(error).__name__
    return f"{name}: {text}"[:_LONGEST_MESSAGE] if text else name


def timeout_failure(
    timeout_s: float, consequence: str = "", retry_alone: bool = True, cost_worker: bool = False
) -> NoResultError:
    """The failure of a scorer that exceeded its time limit; `consequence` continues the message."""
    message = f"no score within timeout_s = {timeout_s:g} s{consequence}"
    return NoResultError(Status.TIMEOUT, message, retry_alone=retry_alone, cost_worker=cost_worker)


def validated(answer: Any, expected: int) -> Result:
    """A scorer's answer for `expected` completions, made safe to send. Raises TypeError if it is not a Result."""
    if not isinstance(answer, Result):
        raise TypeError(f"Scorer.score returned {answer!r:.80} of type {type(answer).__name__}, not a Result")
    scores = tuple(answer.scores)
    if len(scores) != expected:
        scores = failed(expected, Status.INVALID, f"returned {len(scores)} scores for {expected} completions")
    elif not all(map(_is_sound, scores)):
        scores = tuple(score if _is_sound(score) else _as_score(score) for score in scores)
    if not answer.metrics and not answer.extra:
        return Result(scores)
    return Result(scores, _metrics(answer.metrics), _extra(answer.extra, expected))


def join_results(results: Sequence[Result]) -> Result:
    """Joins results of one completion each into their group's: metrics are averaged, absent extra values are None."""
    metric_names = dict.fromkeys(name for result in results for name in result.metrics)
    extra_names = dict.fromkeys(name for result in results for name in result.extra)
    return Result(
        tuple(score for result in results for score in result.scores),
        {name: _mean([r.metrics[name] for r in results if name in r.metrics]) for name in metric_names},
        {name: [r.extra[name][0] if name in r.extra else None for r in results] for name in extra_names},
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _is_sound(score: Any) -> bool:
    if type(score) is not Score or type(score.message) is not str:
        return False
    if score.status is Status.OK:
        return type(score.value) is float and math.isfinite(score.value)
    return score.value is None and isinstance(score.status, Status)


def _as_score(score: Any) -> Score:
    if not isinstance(score, Score):
        return Score(Status.INVALID, message=f"returned {score!r:.80} of type {type(score).__name__}, not a Score")
    if score.status is not Status.OK:
        return Score(Status(score.status), None, str(score.message))
    again = to_score(score.value)
    return again if again.value is not None else Score(Status.INVALID, message=again.message or "OK without a value")


def _metrics(metrics: Mapping[Any, Any]) -> dict[str, float]:
    kept = {}
    for name, value in metrics.items():
        try:
            kept[str(name)] = float(value)
        except (TypeError, ValueError):
            log.warning("metric %r is dropped: %.80r is not a number", name, value)
    return kept


def _extra(extra: Mapping[Any, Any], expected: int) -> dict[str, Sequence[Any]]:
    kept: dict[str, Sequence[Any]] = {}
    for name, column in extra.items():
        values = list(column) if isinstance(column, Sequence) and not isinstance(column, str) else [column]
        if len(values) == expected:
            kept[str(name)] = [_as_json(value) for value in values]
        else:
            log.warning("extra column %r is dropped: %d values for %d completions", name, len(values), expected)
    return kept


def _as_json(value: Any) -> Any:
    if value is None or type(value) in (str, int, bool):
        return value
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError, RecursionError):
        return str(value)
