"""What the trainer does with a completion that has a failed score: failure policies as values.

Owns the decision which completions are dropped from a step, as pure functions of the scores that failed. Knows nothing
of calls, ranks or the trainer's tensors. Every rank comes to the same decision, since all hold the same failures.

The step before is `Outcome.failed_BGS` (outcome.py); the decision is carried out by `drop_failed` (survivors.py).

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
    """What is dropped: completions, shape (B, G), and whole scorers of a group, shape (B, S)."""

    completions_BG: Mask
    scorers_BS: Mask


class FailurePolicy(Protocol):
    """Decides what is dropped; `failed_BGS` is True where a score is INVALID, TIMEOUT or FAILED."""

    def drops(self, failed_BGS: Mask) -> Drops: ...


@dataclass(frozen=True, slots=True)
class Raise:
    """Training stops on all ranks with an error that sums up what failed. The step makes no update."""

    def drops(self, failed_BGS: Mask) -> Drops:
        raise AssertionError("the trainer raises before it asks this policy")


@dataclass(frozen=True, slots=True)
class DropSample:
    """A completion with any failed score is dropped.

    It counts neither for its group's mean and standard deviation nor for the loss and its denominators: the step is
    computed as if the completion had never been sampled.
    """

    def drops(self, failed_BGS: Mask) -> Drops:
        return Drops(_any(failed_BGS, 2), _none_of(failed_BGS))


@dataclass(frozen=True, slots=True)
class DropGroup:
    """A group with any failed score is dropped whole: its prompt does not count in this step."""

    def drops(self, failed_BGS: Mask) -> Drops:
        lost_B1 = _any(failed_BGS, (1, 2))[:, None]
        return Drops(np.broadcast_to(lost_B1, failed_BGS.shape[:2]), _none_of(failed_BGS))


@dataclass(frozen=True, slots=True)
class DropScorer:
    """A scorer that failed on any completion of a group is left out for the whole group.

    So the rewards of a group stay comparable: each is the weighted sum of the same remaining scorers. A group without
    any remaining scorer is dropped whole.
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
