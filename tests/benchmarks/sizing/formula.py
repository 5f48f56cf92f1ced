"""How many replicas a load needs: pure functions of a few numbers.

Trainers send bursts: all groups of a step at once, once a step. Let a run of b groups a step, of c seconds of a worker
on average and at most l, meet R replicas of W workers. Then

    s = b c / (R W)                    seconds of all workers' time that the burst takes
    ρ = (runs b / step) c / (R W)      the share of the workers' time that is used

A burst alone is scored within s + l (Graham's bound for list scheduling). Bursts of runs that do not know of each other
come like those of a Poisson process, so they queue as in M/D/1, whose waiting time has the tail ρ exp(-2 (1 - ρ) t / s)
(Kingman's heavy traffic): in 99 of 100 steps a burst waits no longer than s ln(100 ρ) / (2 (1 - ρ)), and never for more
than the bursts of all other runs. It is scored in time if s, l and this wait together fit into the time that the
trainer spends on log-probabilities (or, with score_ahead, on the whole step) anyway.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Load:
    """Runs of `ranks_a_run` ranks each, `ranks` in all; each rank sends `groups` groups a step of `step_s` seconds.

    `hidden_s` seconds of a step pass before the trainer needs the scores. A group takes `cost_s` seconds of a worker on
    average, and `longest_s` at most: its scorer's `timeout_s`, if nothing shorter bounds it.
    """

    ranks: int
    ranks_a_run: int
    groups: int
    step_s: float
    hidden_s: float
    cost_s: float
    longest_s: float

    @property
    def runs(self) -> int:
        return max(1, self.ranks // self.ranks_a_run)

    @property
    def burst(self) -> int:
        """Groups that a run sends at once."""
        return self.ranks_a_run * self.groups

    @property
    def work(self) -> float:
        """Workers that are busy on average: groups a second times what one costs."""
        return self.runs * self.burst / self.step_s * self.cost_s


def scored_after_s(load: Load, workers: int) -> float:
    """Seconds after which a burst is scored in 99 of 100 steps; infinite where the workers are too few."""
    used = load.work / workers
    if used >= 1.0:
        return math.inf
    alone_s = load.burst * load.cost_s / workers
    queued_s = alone_s * max(0.0, math.log(100 * used)) / (2 * (1 - used)) if used > 0.01 else 0.0
    return alone_s + load.longest_s + min(queued_s, (load.runs - 1) * alone_s)


def replicas(load: Load, workers: int) -> int:
    """The fewest replicas of `workers` workers whose scores come in time in 99 of 100 steps."""
    if load.longest_s >= load.hidden_s:
        raise ValueError(
            f"a group may take {load.longest_s:g} s and {load.hidden_s:g} s are hidden: no number of replicas scores "
            "it in time; raise what is hidden (score_ahead), or lower the scorer's timeout_s"
        )
    found = max(1, math.ceil(load.work / workers))
    while scored_after_s(load, found * workers) > load.hidden_s:
        found += 1
    return found
