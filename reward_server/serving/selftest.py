"""The self-test of loaded scorers: whether they score a sample, made up or of the user's, and what fails on it.

Owns the made-up sample, as text and as messages. `reward-server check` uses it, and so does a reload before it takes
over. Knows nothing of servers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import Any

from reward_server.errors import InvalidGroupError
from reward_server.scorers.base import Scorer
from reward_server.serving.scorer_set import ScorerSet
from reward_server.types import Completion, Content, Group, GroupScores, ScorerInfo

_SAMPLE = ("What is 2 + 2?", ("<think>Two and two.</think> The answer is \\boxed{4}.", "I do not know.", ""))
_SAMPLE_VALUE = "4"


async def failures_on(scorers: ScorerSet, samples: Sequence[Group]) -> list[str]:
    """A line for each scorer that scores none of the samples without a failure, with the reason."""
    problems = [await _failure_on(scorers, info.name, samples) for info in scorers.info.scorers]
    return [problem for problem in problems if problem is not None]


async def _failure_on(scorers: ScorerSet, name: str, samples: Sequence[Group]) -> str | None:
    """Why a scorer fails on the first sample; None if it scores any of them."""
    first: str | None = None
    most = scorers.info.limits.max_completions
    for sample in samples:
        group = dataclasses.replace(sample, completions=sample.completions[:most], scorers=(name,))
        try:
            scorers.admit(group)
            with _expected_to_fail():
                failures = failures_of(await scorers.score(group))
        except InvalidGroupError as error:
            failures = [str(error)]
        if not failures:
            return None
        first = first or failures[0]
    return first


async def failing_on(scorers: ScorerSet, group: Group) -> tuple[str, ...]:
    """The names of the scorers that fail on a group. Nothing is logged, since failures are expected here."""
    with _expected_to_fail():
        scores = await scorers.score(group)
    return tuple(scorer.name for scorer in scores.scorers if any(score.status.is_failure for score in scorer.scores))


def failures_of(scores: GroupScores) -> list[str]:
    """A line for each failure; equal failures of one scorer are listed once."""
    return list(
        dict.fromkeys(
            f"{scorer.name}: {score.status.name}: {score.message}"
            for scorer in scores.scorers
            for score in scorer.scores
            if score.status.is_failure
        )
    )


def made_up(infos: Sequence[ScorerInfo], scorers: Sequence[Scorer] = ()) -> tuple[Group, Group]:
    """A group of three completions with token ids and every column that a scorer needs: as text, and as messages.

    `scorers` are asked for values of the columns in which plain text cannot be read.
    """
    prompt, texts = _SAMPLE
    columns: dict[str, Any] = {name: _SAMPLE_VALUE for info in infos for name in info.required_columns}
    for scorer in scorers:
        columns |= scorer.sample_columns
    token_ids = [tuple(range(len(text.split()))) or None for text in texts]
    messages: list[Content] = [[{"role": "assistant", "content": text}] for text in texts]
    names: dict[str, Any] = {"columns": columns, "run_id": "check", "group_id": "sample"}
    return (
        Group(prompt, tuple(map(Completion, texts, token_ids)), **names),
        Group([{"role": "user", "content": prompt}], tuple(map(Completion, messages, token_ids)), **names),
    )


_is_expected: ContextVar[bool] = ContextVar("is_expected", default=False)


@contextlib.contextmanager
def _expected_to_fail() -> Iterator[None]:
    """Keeps warnings about the group that is scored in this block out of the log, but not those about other groups that
    a server scores meanwhile.
    """
    log = logging.getLogger("reward_server")
    token = _is_expected.set(True)  # the tasks that score the group inherit this
    log.addFilter(_is_worth_logging)
    try:
        yield
    finally:
        log.removeFilter(_is_worth_logging)
        _is_expected.reset(token)


def _is_worth_logging(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR or not _is_expected.get()
