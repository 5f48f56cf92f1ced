"""A completion as rows of tokens for a model: whole, or step by step as process reward models read it.

Owns the steps of a completion, what their scores come to, and what is cut off a row that is too long. Pure functions;
knows nothing of models or tokenizers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Aggregate = Literal["min", "last", "mean", "product"]


class StepsOptions(BaseModel):
    """How a process reward model reads a completion: step by step."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    separator: str = Field("\n\n", min_length=1, description="Text between the steps of a completion.")
    token: str | None = Field(
        None,
        min_length=1,
        description="Text that stands after each step, at which the model was trained to judge it, such as <extra_0>; "
        "the separator if unset.",
    )
    aggregate: Aggregate = Field(
        "min", description="How the scores of the steps become one: the lowest, the last, their mean or their product."
    )


@dataclass(frozen=True, slots=True)
class Row:
    """What the model sees of one completion.

    `step_ends` are the positions at which it is scored, one a step; empty where it is scored at its end. The first
    `head` and the last `tail` tokens are never cut off. `cut_tokens` is how many tokens were.
    """

    ids: list[int]
    step_ends: tuple[int, ...] = ()
    head: int = 0
    tail: int = 0
    cut_tokens: int = 0


def split_steps(text: str, separator: str) -> list[str]:
    """The steps that are not blank; a text without any is one step."""
    return [step for step in text.split(separator) if step.strip()] or [text]


def joined_steps(
    start: Sequence[int], steps: Sequence[Sequence[int]], token: Sequence[int], end: Sequence[int] = (), head: int = 0
) -> Row:
    """The row of steps that are each followed by the step token, from the token ids of its parts."""
    ids, ends = list(start), []
    for step in steps:
        ids += [*step, *token]
        ends.append(len(ids) - 1)
    return Row([*ids, *end], tuple(ends), head, len(end))


def aggregated(values: Sequence[float], how: Aggregate) -> float:
    """What the scores of one completion's steps come to; NaN if one of them is no finite number."""
    if not all(map(math.isfinite, values)):
        return math.nan
    match how:
        case "min":
            return min(values)
        case "last":
            return values[-1]
        case "mean":
            return sum(values) / len(values)
        case "product":
            return math.prod(values)


def truncated(row: Row, limit: int, side: Literal["left", "right"]) -> Row | None:
    """The row with at most `limit` tokens and the steps that still end in it; None if head and tail alone are longer.

    left cuts behind the head, right before the tail.
    """
    cut = len(row.ids) - limit
    if row.head + row.tail > limit:
        return None
    first = row.head if side == "left" else len(row.ids) - row.tail - cut
    kept = [end for end in row.step_ends if not first <= end < first + cut]
    return replace(
        row,
        ids=row.ids[:first] + row.ids[first + cut :],
        step_ends=tuple(end if end < first else end - cut for end in kept),
        cut_tokens=cut,
    )
