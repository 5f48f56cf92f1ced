"""Scorers of a completion's length: bounds, the soft punishment of overlong completions, a budget of tokens.

Owns three small rules. Knows nothing of what a completion says.

Legend: G completions of a group.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from pydantic import Field, model_validator

from reward_server.scorers.base import Result, ScorerOptions, to_score
from reward_server.scorers.columns import ColumnScorer
from reward_server.scorers.heuristics import Heuristic, Unit
from reward_server.types import Group, Score, Status

# -------------------------------------------------------------------------------------------------------------- bounds


class LengthOptions(ScorerOptions):
    """Options of `length`."""

    min: int = Field(0, ge=0, description="Shortest length that scores 1.")
    max: int | None = Field(None, ge=0, description="Longest length that scores 1; unbounded if unset.")
    unit: Unit = Field("chars", description="chars, words (split at white space) or tokens (the trainer sends them).")

    @model_validator(mode="after")
    def _bounds_something(self) -> LengthOptions:
        if self.max is None and self.min == 0:
            raise ValueError("set min, max or both; as it is every length scores 1")
        if self.max is not None and self.min > self.max:
            raise ValueError(f"min ({self.min}) is above max ({self.max}); no length would score 1")
        return self


class LengthScorer(Heuristic[LengthOptions]):
    """1.0 where min <= length <= max, 0.0 elsewhere."""

    Options = LengthOptions

    def values(self, group: Group) -> list[float]:
        upper = float("inf") if self.options.max is None else self.options.max
        return [float(self.options.min <= len(parts) <= upper) for parts in self.units(group, self.options.unit)]


# ------------------------------------------------------------------------------------------------------- soft overlong


class SoftOverlongOptions(ScorerOptions):
    """Options of `soft_overlong`."""

    max_tokens: int = Field(gt=0, description="Tokens above which a completion scores -1: L_max of DAPO.")
    buffer_tokens: int = Field(
        ge=0,
        description="The last tokens before max_tokens, over which the score falls from 0 to -1: L_cache of DAPO. With "
        "0 it falls at once.",
    )

    @model_validator(mode="after")
    def _buffer_fits(self) -> SoftOverlongOptions:
        if self.buffer_tokens > self.max_tokens:
            raise ValueError(
                f"buffer_tokens ({self.buffer_tokens}) is above max_tokens ({self.max_tokens}); even an empty "
                "completion would be punished"
            )
        return self


class SoftOverlongScorer(Heuristic[SoftOverlongOptions]):
    """0 up to max_tokens - buffer_tokens, from there linearly down to -1 at max_tokens, and -1 beyond.

    DAPO (arXiv 2503.14476), equation 13; the values of TRL's `get_soft_overlong_punishment`. Lengths are counted in the
    trainer's tokens, which it sends with `reward_token_ids`.
    """

    Options = SoftOverlongOptions

    def values(self, group: Group) -> list[float]:
        return [self._value(len(ids)) for ids in self.token_ids(group)]

    def _value(self, tokens: int) -> float:
        buffer = self.options.buffer_tokens
        over = tokens - (self.options.max_tokens - buffer)
        if over <= 0:
            return 0.0
        return -1.0 if over >= buffer else -over / buffer


# ------------------------------------------------------------------------------------------------------- length budget


class LengthBudgetOptions(ScorerOptions):
    """Options of `length_budget`."""

    budget: int | None = Field(None, ge=0, description="Tokens that cost nothing, the same for every row.")
    column: str | None = Field(None, description="Column with each row's budget, in tokens; set it or budget.")
    cost_per_token: float = Field(0.001, gt=0, allow_inf_nan=False, description="Cost of a token beyond the budget.")
    max_cost: float | None = Field(
        1.0, gt=0, allow_inf_nan=False, description="The most that a completion costs; null bounds nothing."
    )

    @model_validator(mode="after")
    def _has_one_budget(self) -> LengthBudgetOptions:
        if (self.budget is None) == (self.column is None):
            raise ValueError("set either budget (tokens) or column (the name of the column that has them)")
        return self


class LengthBudgetScorer(Heuristic[LengthBudgetOptions], ColumnScorer[LengthBudgetOptions]):
    """Minus the cost of the tokens beyond a budget, and 0 within it; not applicable where the column is null.

    Lengths are counted in the trainer's tokens, which it sends with `reward_token_ids`.
    """

    Options = LengthBudgetOptions

    def score(self, group: Group) -> Result:
        lengths = map(len, self.token_ids(group))
        return Result(tuple(map(self._score, lengths, self.values(group))))

    def values(self, group: Group) -> Sequence[Any]:
        """Each completion's budget, as the column has it."""
        column = self.options.column
        return [self.options.budget] * len(group) if column is None else self.column(group, column)

    def _score(self, tokens: int, budget: Any) -> Score:
        if budget is None:
            return Score(Status.NOT_APPLICABLE)
        allowed = _tokens(budget)
        if allowed is None:
            message = f"column {self.options.column!r} has {budget!r:.80}, not a number of tokens (0 or more)"
            return Score(Status.INVALID, message=message)
        cost = self.options.cost_per_token * max(0.0, tokens - allowed)
        most = math.inf if self.options.max_cost is None else self.options.max_cost
        return to_score(-min(cost, most) if cost else 0.0)


def _tokens(budget: Any) -> float | None:
    """A column's value as a number of tokens; None if it is none."""
    if isinstance(budget, bool) or not isinstance(budget, (int, float)):
        return None
    return float(budget) if math.isfinite(budget) and budget >= 0 else None
