"""Rank statistics, against numbers worked by hand and against scipy's."""

from __future__ import annotations

import random

import pytest

from reward_server.evaluation.statistics import kendall, ordered_alike, ranks, spearman


def test_equal_values_share_the_mean_of_their_ranks() -> None:
    assert ranks([3.0, 1.0, 3.0, 2.0]) == [3.5, 1.0, 3.5, 2.0]


def test_the_same_order_is_1_the_reverse_is_minus_1_and_a_constant_is_no_order() -> None:
    for statistic in (spearman, kendall):
        assert statistic([1, 2, 3], [10, 20, 30]) == pytest.approx(1)
        assert statistic([1, 2, 3], [30, 20, 10]) == pytest.approx(-1)
        assert statistic([1, 2, 3], [5, 5, 5]) is None
        assert statistic([1], [1]) is None


def test_a_tie_counts_half_and_what_the_labels_do_not_order_is_no_pair() -> None:
    # Labels order the pairs (0, 1), (0, 2); values agree on the first and tie on the second.
    assert ordered_alike([2.0, 1.0, 2.0], [3, 1, 1]) == (1.5, 2)


@pytest.mark.parametrize("seed", range(5))
def test_they_are_scipys(seed: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    rng = random.Random(seed)
    first, second = ([float(rng.randint(0, 4)) for _ in range(12)] for _ in range(2))
    assert kendall(first, second) == pytest.approx(stats.kendalltau(first, second).statistic)
    assert spearman(first, second) == pytest.approx(stats.spearmanr(first, second).statistic)
