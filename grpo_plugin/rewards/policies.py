"""What the trainer does with a completion that has a failed score: failure policies as values.

Owns the decision who leaves a step, as pure functions of which scores failed. Knows nothing of calls, ranks or tensors
of the trainer; every rank decides alike, since all hold the same failures.

A policy of your own is any object with `drops(failed_BGS) -> Drops`, named by `on_reward_failure: "module:attribute"`.

Legend: B groups of the global batch, G completions of a group, S scorers.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from reward_server.errors import ConfigError

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Drops:
    """Who leaves: completions, and scorers of a group."""

    completions_BG: Mask
    scorers_BS: Mask


class FailurePolicy(Protocol):
    """What follows from the scores that failed; `failed_BGS` is True where INVALID, TIMEOUT, FAILED or unanswered."""

    def drops(self, failed_BGS: Mask) -> Drops: ...


@dataclass(frozen=True, slots=True)
class Raise:
    """All ranks stop together; the error sums up what failed. Nothing is learnt from the step."""

    def drops(self, failed_BGS: Mask) -> Drops:
        raise AssertionError("the trainer raises before it asks this policy")


@dataclass(frozen=True, slots=True)
class DropSample:
    """A completion with any failed score leaves its group's mean and std, the loss and its denominators.

    The step is that of a batch in which the completion was never sampled.
    """

    def drops(self, failed_BGS: Mask) -> Drops:
        return Drops(_any(failed_BGS, 2), _none_of(failed_BGS))


@dataclass(frozen=True, slots=True)
class DropGroup:
    """A group with any failed score leaves whole: its prompt teaches nothing in this step."""

    def drops(self, failed_BGS: Mask) -> Drops:
        lost_B1 = _any(failed_BGS, (1, 2))[:, None]
        return Drops(np.broadcast_to(lost_B1, failed_BGS.shape[:2]), _none_of(failed_BGS))


@dataclass(frozen=True, slots=True)
class DropScorer:
    """A scorer that failed on any member is left out for the whole group; siblings stay comparable.

    The group's reward is the weighted sum of the scorers that are left. A group that has none left leaves.
    """

    def drops(self, failed_BGS: Mask) -> Drops:
        return Drops(np.zeros(failed_BGS.shape[:2], bool), _any(failed_BGS, 1))


def _any(mask: Mask, axis: int | tuple[int, ...]) -> Mask:
    return np.asarray(mask.any(axis=axis))


def _none_of(failed_BGS: Mask) -> Mask:
    return np.zeros((failed_BGS.shape[0], failed_BGS.shape[2]), bool)


POLICIES: dict[str, FailurePolicy] = {
    "raise": Raise(),
    "drop_sample": DropSample(),
    "drop_group": DropGroup(),
    "drop_scorer": DropScorer(),
}


def policy_of(name: str) -> FailurePolicy:
    """A policy by its name, or a user's own by module:attribute. Raises ConfigError naming what there is."""
    if name in POLICIES:
        return POLICIES[name]
    module, colon, attribute = name.partition(":")
    if not colon:
        raise ConfigError(
            f"on_reward_failure must be one of {', '.join(POLICIES)}, or module:attribute of your own, not {name!r}"
        )
    try:
        policy = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"on_reward_failure {name!r} does not import: {error}") from error
    if not callable(getattr(policy, "drops", None)):
        raise ConfigError(f"on_reward_failure {name!r} has no method drops(failed_BGS)")
    return policy


def drop_small_groups(dropped_BG: Mask, min_group_size: int) -> Mask:
    """`dropped_BG`, with every completion of a group that has fewer than `min_group_size` survivors."""
    small_B1 = ((~dropped_BG).sum(axis=1) < min_group_size)[:, None] & _any(dropped_BG, 1)[:, None]
    return dropped_BG | small_B1
