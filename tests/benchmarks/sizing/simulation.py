"""A service and its trainers over simulated time: bursts once a step, first come, first served.

`simulate` makes an event of a burst, for months: its work is the sum of its groups' times (log-normal, cut at the time
limit), spread over all workers, and the longest of the groups that come last ends it. `simulate_groups` makes an event
of a group, for hours: the one is held against the other. A run's next step begins when its own work is done and its
scores are there, so a service that is late slows the trainers that ask it, as it does in truth.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

from tests.benchmarks.sizing.formula import Load

_SIGMA = 1.0  # of the logarithm of a group's time
_JITTER = 0.1  # a step's own time varies by so much
_NORMAL = NormalDist()


@dataclass(frozen=True)
class Simulated:
    """What happened. Waits are seconds that a trainer waited in a step beyond what was hidden."""

    steps: int
    late: float  # share of steps with any wait
    scored_p99_s: float
    wait_mean_s: float
    used: float  # share of the workers' time


def simulate(load: Load, workers: int, seconds: float, seed: int = 0) -> Simulated:
    """`seconds` of simulated time, from runs that begin at random moments."""
    free_at, last = 0.0, min(load.burst, workers)

    def score(now: float, drawn: random.Random) -> tuple[float, float]:
        nonlocal free_at
        work_s = _work(load, drawn)
        free_at = max(free_at, now) + work_s / workers
        return free_at - now + _longest(load, last, drawn), work_s

    return _simulate(load, workers, seconds, seed, score)


def simulate_groups(load: Load, workers: int, seconds: float, seed: int = 0) -> Simulated:
    """The same, group by group and worker by worker."""
    free_at = [0.0] * workers

    def score(now: float, drawn: random.Random) -> tuple[float, float]:
        ended, work_s = now, 0.0
        for _ in range(load.burst):
            took_s = _one(load, drawn.gauss(0.0, 1.0))
            work_s += took_s
            begun = max(now, free_at[0])
            heapq.heapreplace(free_at, begun + took_s)
            ended = max(ended, begun + took_s)
        return ended - now, work_s

    return _simulate(load, workers, seconds, seed, score)


def _simulate(
    load: Load,
    workers: int,
    seconds: float,
    seed: int,
    score: Callable[[float, random.Random], tuple[float, float]],
) -> Simulated:
    """`score(now, drawn)` takes a burst and returns after how many seconds it is scored, and its work."""
    drawn = random.Random(seed)
    due = [(drawn.uniform(0.0, load.step_s), run) for run in range(load.runs)]
    heapq.heapify(due)
    busy_s, took = 0.0, []
    while due[0][0] < seconds:
        now, run = heapq.heappop(due)
        scored_s, work_s = score(now, drawn)
        busy_s += work_s
        took.append(scored_s)
        waits_s = max(0.0, scored_s - load.hidden_s)
        heapq.heappush(due, (now + load.step_s * drawn.uniform(1 - _JITTER, 1 + _JITTER) + waits_s, run))
    took.sort()
    waits = [max(0.0, each - load.hidden_s) for each in took]
    return Simulated(
        len(took),
        sum(wait > 0 for wait in waits) / len(waits),
        took[int(0.99 * len(took))],
        sum(waits) / len(waits),
        busy_s / workers / seconds,
    )


def _one(load: Load, normal: float) -> float:
    """A group's time, of a standard normal number."""
    return min(load.longest_s, load.cost_s * math.exp(_SIGMA * normal - _SIGMA**2 / 2))


def _work(load: Load, drawn: random.Random) -> float:
    """The sum of a burst's log-normal times, which is nearly normal."""
    spread = load.cost_s * math.sqrt(math.expm1(_SIGMA**2) * load.burst)
    return max(load.cost_s, drawn.gauss(load.burst * load.cost_s, spread))


def _longest(load: Load, groups: int, drawn: random.Random) -> float:
    """The longest of so many groups: the distribution function of one, to the power of their number, is uniform."""
    return _one(load, _NORMAL.inv_cdf(max(1e-12, drawn.random()) ** (1 / groups)))
