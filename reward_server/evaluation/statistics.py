"""Rank statistics of few numbers: agreement of two orders. Pure.

Ties are treated as their sources say: mid-ranks in Spearman's ρ, τ-b in Kendall's.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence


def ranks(values: Sequence[float]) -> list[float]:
    """Ranks from 1 for the smallest; equal values share the mean of their ranks."""
    order = sorted(range(len(values)), key=lambda index: values[index])
    found = [0.0] * len(values)
    for _, tied in itertools.groupby(enumerate(order, start=1), key=lambda item: values[item[1]]):
        items = list(tied)
        mean = sum(rank for rank, _ in items) / len(items)
        for _, index in items:
            found[index] = mean
    return found


def spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Spearman's ρ: the correlation of the ranks (Spearman 1904). None where one side is constant."""
    return correlation(ranks(first), ranks(second))


def correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Pearson's correlation; None for fewer than two values or where one side is constant."""
    if len(first) < 2:
        return None
    mean_first, mean_second = sum(first) / len(first), sum(second) / len(second)
    pairs = [(a - mean_first, b - mean_second) for a, b in zip(first, second, strict=True)]
    spread = math.sqrt(sum(a * a for a, _ in pairs) * sum(b * b for _, b in pairs))
    return sum(a * b for a, b in pairs) / spread if spread > 0 else None


def kendall(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Kendall's τ-b (Kendall 1945): 1 for the same order, −1 for the reverse. None where one side is constant."""
    alike = differing = only_first = only_second = 0
    for (a, x), (b, y) in itertools.combinations(zip(first, second, strict=True), 2):
        signs = _sign(a - b) * _sign(x - y)
        alike += signs > 0
        differing += signs < 0
        only_first += a != b and x == y
        only_second += a == b and x != y
    untied_first, untied_second = alike + differing + only_first, alike + differing + only_second
    if not untied_first or not untied_second:
        return None
    return (alike - differing) / math.sqrt(untied_first * untied_second)


def ordered_alike(first: Sequence[float], second: Sequence[float]) -> tuple[float, int]:
    """How many of the pairs that `second` orders `first` orders alike (a tie counts half), and how many there are."""
    pairs = [(a - b, x - y) for (a, x), (b, y) in itertools.combinations(zip(first, second, strict=True), 2) if x != y]
    return sum(0.5 if d == 0 else float(d * e > 0) for d, e in pairs), len(pairs)


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)
