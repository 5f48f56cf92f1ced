"""Prompts that are too easy or too hard are visited less: the history of pass shares, and the order of an epoch.

A prompt's pass share is the mean score of its completions over its last visits. An epoch still visits as many prompts
as the data set has: each of those within the band once or more, the others `weight` times as often. What an epoch
visits is decided when it begins, from the visits before it, so that a run that resumes within an epoch visits the same.

Legend: P prompts of the data set.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any


def key_of(prompt: Any) -> str:
    """A prompt's name in the history: rows with equal prompts share it, whatever their place in the data set."""
    text = json.dumps(prompt, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


class Difficulty:
    """The pass shares of prompts, and what follows from them.

    `band` is the lowest and highest pass share of a prompt that is visited as usual; `weight`, below 1, is how often
    the others are visited, relative to those; `visits` is how many of a prompt's last visits count.
    """

    def __init__(self, band: Sequence[float], weight: float, visits: int, seed: int):
        self._band = band
        self._weight = weight
        self._visits = visits
        self._seed = seed
        self._shares: dict[str, list[float]] = {}
        self._before_epoch: dict[str, list[float]] = {}
        self._epochs = 0
        self._within_epoch = False
        self._epochs_to_skip = 0

    # ------------------------------------------------------------------------------------------------------- history

    def add(self, key: str, share: float) -> None:
        """Notes a visit; NaN, which no score of the group gives, is none."""
        if not math.isnan(share):
            self._shares[key] = [*self._shares.get(key, ()), share][-self._visits :]

    def outside(self) -> float:
        """The share of the visited prompts whose pass share is outside the band."""
        if not self._shares:
            return 0.0
        return sum(not self._is_inside(shares) for shares in self._shares.values()) / len(self._shares)

    def _is_inside(self, shares: Sequence[float]) -> bool:
        low, high = self._band
        return low <= sum(shares) / len(shares) <= high

    # --------------------------------------------------------------------------------------------------------- epochs

    def begin_epoch(self, keys_P: Sequence[str]) -> list[int]:
        """The indices of the prompts that the epoch visits, P long and in order of the data set."""
        if not self._within_epoch:
            self._before_epoch = dict(self._shares)
            self._epochs += 1
        self._within_epoch = False
        before = self._before_epoch
        weights = [1.0 if key not in before or self._is_inside(before[key]) else self._weight for key in keys_P]
        start = random.Random(f"{self._seed}/{self._epochs}").random()
        return list(_in_proportion(weights, start))

    # -------------------------------------------------------------------------------------------------------- storage

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"epochs": self._epochs, "before_epoch": self._before_epoch, "shares": self._shares}

    def load(self, state: Mapping[str, Any], *, within_epoch: bool) -> None:
        """Goes on from a checkpoint's state; `within_epoch` repeats the order of the epoch that it was saved in."""
        self._epochs = state["epochs"]
        self._before_epoch = dict(state["before_epoch"])
        self._shares = dict(state["shares"])
        self._within_epoch = within_epoch
        self._epochs_to_skip = self._epochs - within_epoch

    def take_epochs_to_skip(self) -> int:
        """How many epochs of a shuffled order lie before the next one, once after `load`; else 0."""
        skipped, self._epochs_to_skip = self._epochs_to_skip, 0
        return skipped


def _in_proportion(weights: Sequence[float], start: float) -> Iterator[int]:
    """Each index as often as its weight says, rounded up or down, and as many in all as there are weights.

    Systematic resampling: equally spaced marks, the first at `start` (0 to 1), fall into intervals as long as the
    weights. With equal weights every index comes once.
    """
    total = sum(weights)
    passed = 0
    for index, reached in enumerate(itertools.accumulate(weights)):
        marks = math.floor(reached / total * len(weights) + start)
        yield from itertools.repeat(index, marks - passed)
        passed = marks


class DifficultySampler:
    """A sampler of TRL's whose epochs visit the prompts that `difficulty` says; shuffled and repeated as TRL does."""

    def __init__(self, inner: Iterable[int], difficulty: Difficulty, prompts: Iterable[Any]):
        self._inner = inner
        self._difficulty = difficulty
        self._keys_P = [key_of(prompt) for prompt in prompts]

    def __iter__(self) -> Iterator[int]:
        for _ in range(self._difficulty.take_epochs_to_skip()):
            next(iter(self._inner), None)  # TRL draws an epoch's order when its first index is taken
        visited = self._difficulty.begin_epoch(self._keys_P)
        return (visited[index] for index in self._inner)

    def __len__(self) -> int:
        assert isinstance(self._inner, Sized)
        return len(self._inner)
