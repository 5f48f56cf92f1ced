"""From comparisons and rankings to scores in [0, 1]: pure functions.

Legend: G completions of a group.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

Pair = tuple[int, int]


def pairs(count: int, rounds: int | None) -> list[Pair]:
    """The pairs of `count` completions that are compared: all, or each with the next `rounds`, as in a circle."""
    offsets = range(1, count if rounds is None else min(rounds + 1, count))
    met = [(i, (i + offset) % count) for offset in offsets for i in range(count)]
    return sorted({(min(pair), max(pair)) for pair in met})


def win_rates(count: int, outcomes: Mapping[Pair, float | None]) -> list[float | None]:
    """The mean outcome of each completion's comparisons, G long; None if its comparisons are not complete.

    An outcome is 1 if the pair's first is better, 0 if the second is, and None if the comparison failed. While there
    are failed comparisons, the completions with the most of them are removed with all of their comparisons. So a
    completion that breaks the judge is removed alone, and the others were compared with the same siblings. A completion
    without any comparison left has no win rate.
    """
    standing = set(range(count))
    while failed := [pair for pair, value in outcomes.items() if value is None and standing.issuperset(pair)]:
        failures = Counter(index for pair in failed for index in pair)
        most = max(failures.values())
        standing -= {index for index, number in failures.items() if number == most}
    won: list[list[float]] = [[] for _ in range(count)]
    for (first, second), value in outcomes.items():
        if value is not None and {first, second} <= standing:
            won[first].append(value)
            won[second].append(1 - value)
    return [sum(values) / len(values) if values else None for values in won]


def rank_scores(rankings: Sequence[Sequence[int]]) -> list[float]:
    """The mean rank of each completion, G long: 1 for the best, 0 for the last. Rankings hold indices, best first."""
    count = len(rankings[0])
    places = [{index: place for place, index in enumerate(ranking)} for ranking in rankings]
    return [sum(1 - place[index] / (count - 1) for place in places) / len(places) for index in range(count)]
