"""Which groups are worth training on: filters as values, for `group_filter`.

Owns the decision, as pure functions of the scores of all ranks; so every rank decides the same. Knows nothing of how
groups are generated, nor what takes the place of one that is not kept.

A filter of your own is any object with `keeps(groups) -> Tensor`, named by `group_filter: "module:attribute"`.

Legend: B groups, G completions of a group, S scorers, R = B × G.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from grpo_plugin.rewards.survivors import has_signal
from reward_server.errors import ConfigError


@dataclass(frozen=True, slots=True)
class ScoredGroups:
    """The scores of B groups, on the host, as all ranks hold them: NaN for no score, and for a dropped completion.

    `scores_BGS` has a column for each of `scorers` (local reward functions, then the service's), `weights_S` their
    weights. `per_scorer` says that rewards are normalized scorer by scorer (TRL's `normalize_then_sum`).
    """

    scores_BGS: torch.Tensor
    weights_S: torch.Tensor
    scorers: Sequence[str]
    per_scorer: bool = False

    @property
    def rewards_BG(self) -> torch.Tensor:
        """The weighted sums; NaN for a completion without any score."""
        sums_BG = (self.scores_BGS * self.weights_S).nansum(dim=2)
        return sums_BG.masked_fill(torch.isnan(self.scores_BGS).all(dim=2), torch.nan)


class GroupFilter(Protocol):
    """Says which groups are kept, as booleans of shape (B,)."""

    def keeps(self, groups: ScoredGroups) -> torch.Tensor: ...


@dataclass(frozen=True, slots=True)
class HasSignal:
    """Keeps a group if the rewards of its completions are not all equal; equal ones have advantages of 0."""

    def keeps(self, groups: ScoredGroups) -> torch.Tensor:
        _, size, scorers = groups.scores_BGS.shape
        signal_R = has_signal(groups.scores_BGS.reshape(-1, scorers), groups.weights_S, size, groups.per_scorer)
        return signal_R[::size]


@dataclass(frozen=True, slots=True)
class PassRate:
    """Keeps a group if the mean of one scorer's scores is within `low` and `high`, both included."""

    low: float
    high: float
    scorer: str | None = None  # may be left out where there is one

    def keeps(self, groups: ScoredGroups) -> torch.Tensor:
        column = groups.scorers.index(self.scorer) if self.scorer is not None else 0
        share_B = groups.scores_BGS[:, :, column].nanmean(dim=1)
        return (share_B >= self.low) & (share_B <= self.high)


NAMES = ("has_signal", "pass_rate")


def filter_of(name: str, band: Sequence[float] | None = None, scorer: str | None = None) -> GroupFilter:
    """A filter by its name, or a user's own by module:attribute. Raises ConfigError naming what there is.

    `band` and `scorer` are those of 'pass_rate'.
    """
    if name == "has_signal":
        return HasSignal()
    if name == "pass_rate":
        return PassRate(*_band(band), scorer)
    module, colon, attribute = name.partition(":")
    if not colon:
        raise ConfigError(
            f"group_filter must be one of {', '.join(NAMES)}, or module:attribute of your own, not {name!r}"
        )
    return _imported(name, module, attribute)


def _imported(name: str, module: str, attribute: str) -> GroupFilter:
    try:
        found: Any = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"group_filter {name!r} does not import: {error}") from error
    if not callable(getattr(found, "keeps", None)) or isinstance(found, type):
        raise ConfigError(f"group_filter {name!r} is not an object with a method keeps(groups)")
    checked: GroupFilter = found
    return checked


def _band(band: Sequence[float] | None) -> tuple[float, float]:
    if band is None or len(band) != 2 or not band[0] <= band[1]:
        raise ConfigError(
            "group_filter 'pass_rate' needs pass_rate, two shares with the lower one first, such as 0.1 0.9; not "
            f"{band}"
        )
    return band[0], band[1]


def kept_by(group_filter: GroupFilter, groups: ScoredGroups) -> torch.Tensor:
    """What the filter keeps, checked: a filter of a user's own may return anything. Raises ConfigError."""
    kept_B = torch.as_tensor(group_filter.keeps(groups))
    if kept_B.shape != groups.scores_BGS.shape[:1] or kept_B.dtype != torch.bool:
        raise ConfigError(
            f"group_filter {type(group_filter).__name__}.keeps returned {kept_B.dtype} of shape {tuple(kept_B.shape)} "
            f"for {len(groups.scores_BGS)} groups: it must return a boolean for each group"
        )
    return kept_B.cpu()
