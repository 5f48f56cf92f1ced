"""Cuts one rank's rows into micro-batches that fit a budget of tokens.

Owns two ways: bins of about equal cost for rows without padding, rectangles of least padding for padded ones. Knows
nothing of ranks, but that the rectangles of all of them are found at once, which is faster than one after another.

Legend: K ranks, P places of a rank's rows, longest first.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


def balanced(costs: Sequence[float], parts: int) -> list[list[int]]:
    """Splits numbers into `parts` of about equal sums, longest first (Graham 1969): the indices of each part."""
    heap = [(0.0, part) for part in range(parts)]
    found: list[list[int]] = [[] for _ in range(parts)]
    for index in sorted(range(len(costs)), key=lambda index: -costs[index]):
        load, part = heap[0]
        found[part].append(index)
        heapq.heapreplace(heap, (load + costs[index], part))
    return found


def bins(costs: Sequence[int], tokens: Sequence[int], budget: int, at_least: int = 1) -> list[list[int]]:
    """As few bins of about equal cost as the budget allows, but `at_least` so many where there are things for them.

    A bin holds more than `budget` tokens only if it holds one thing alone.
    """
    if not costs:
        return []
    count = max(at_least, -(-sum(tokens) // budget))
    while count < len(costs):
        parts = balanced(costs, count)
        if all(len(part) == 1 or sum(tokens[index] for index in part) <= budget for part in parts):
            return parts
        count += 1
    return [[index] for index in range(len(costs))]


def rectangles(
    prompts_KP: Ints, completions_KP: Ints, rows_K: Ints, budget: int, attention: float, overhead: int
) -> list[list[tuple[int, int]]]:
    """For each rank the (start, end) of its micro-batches, so that the padded whole costs least.

    The rows of a rank are sorted by length, longest first; `rows_K` says how many it has. A rectangle of n rows that
    are as wide as the longest prompt and the longest completion, w, costs n (w + attention w²) + overhead.
    """
    ranks, places = prompts_KP.shape
    best = np.full((ranks, places + 1), np.inf)
    best[:, 0] = 0.0
    start = np.zeros((ranks, places + 1), dtype=np.int64)
    for end in range(1, places + 1):
        # The last row is the shortest: more rows than budget / its length do not fit.
        shortest = np.where(rows_K >= end, prompts_KP[:, end - 1] + completions_KP[:, end - 1], budget)
        most = min(end, max(1, budget // max(1, int(shortest.min()))))
        behind = slice(end - most, end)
        counts = np.arange(1, most + 1)
        width = _running_max(prompts_KP[:, behind]) + _running_max(completions_KP[:, behind])
        cost = counts * (width + attention * width**2) + overhead + best[:, behind][:, ::-1]
        cost[:, 1:][(counts * width)[:, 1:] > budget] = np.inf
        choice = cost.argmin(axis=1)
        best[:, end] = cost[np.arange(ranks), choice]
        start[:, end] = end - 1 - choice
    return [_walk_back(row, int(end)) for row, end in zip(start.tolist(), rows_K, strict=True)]


def halved(parts: list[tuple[int, int]], count: int, cost: Sequence[float]) -> list[tuple[int, int]]:
    """The dearest micro-batches halved until there are `count`, or nothing is left to halve.

    `cost[n]` is what row n costs alone.
    """
    queue = [(-sum(cost[start:end]), start, end) for start, end in parts if end - start > 1]
    done = [part for part in parts if part[1] - part[0] <= 1]
    heapq.heapify(queue)
    while queue and len(queue) + len(done) < count:
        _, start, end = heapq.heappop(queue)
        middle = (start + end) // 2
        for part in ((start, middle), (middle, end)):
            if part[1] - part[0] > 1:
                heapq.heappush(queue, (-sum(cost[slice(*part)]), *part))
            else:
                done.append(part)
    return done + [(start, end) for _, start, end in queue]


def _running_max(values_KP: Ints) -> Ints:
    """The largest of the last 1, 2, 3, … values of each rank."""
    return np.asarray(np.maximum.accumulate(values_KP[:, ::-1], axis=1))


def _walk_back(start: Sequence[int], end: int) -> list[tuple[int, int]]:
    found = []
    while end:
        found.append((start[end], end))
        end = start[end]
    return found[::-1]
