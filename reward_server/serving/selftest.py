"""Whether loaded scorers score: a sample, made up or of the user's, and what failed on it.

Owns the made-up sample, in the two forms that a scorer may read. Used by `reward-server check`, which prints what came
of it, and before a configuration that was loaded anew takes over.
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
    """What is wrong with the scorers that score none of the samples without a failure, in one line each."""
    problems = [await _failure_on(scorers, info.name, samples) for info in scorers.info.scorers]
    return [problem for problem in problems if problem is not None]


async def _failure_on(scorers: ScorerSet, name: str, samples: Sequence[Group]) -> str | None:
    """Why a scorer fails on the first of them; None as soon as it scores one."""
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
    """The names of the scorers that fail on a group. Nothing is logged: it is expected of some."""
    with _expected_to_fail():
        scores = await scorers.score(group)
    return tuple(scorer.name for scorer in scores.scorers if any(score.status.is_failure for score in scorer.scores))


def failures_of(scores: GroupScores) -> list[str]:
    """What failed, in one line each; equal messages of one scorer once."""
    return list(
        dict.fromkeys(
            f"{scorer.name}: {score.status.name}: {score.message}"
            for scorer in scores.scorers
            for score in scorer.scores
            if score.status.is_failure
        )
    )


def made_up(infos: Sequence[ScorerInfo], scorers: Sequence[Scorer] = ()) -> tuple[Group, Group]:
    """A prompt and three completions with token ids and every column that a scorer needs: as text, as messages.

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
    """What is said of the group that is scored here is kept out of the log; of others, which a server scores beside
    it, it is not.
    """
    log = logging.getLogger("reward_server")
    token = _is_expected.set(True)  # the tasks that score it inherit it
    log.addFilter(_is_worth_saying)
    try:
        yield
    finally:
        log.removeFilter(_is_worth_saying)
        _is_expected.reset(token)


def _is_worth_saying(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR or not _is_expected.get()
