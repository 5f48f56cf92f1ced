"""The formula of the deployment page, by numbers worked by hand, and held against simulated days."""

from __future__ import annotations

import dataclasses
import math

import pytest

from tests.benchmarks.capacity import LOADS, WORKERS, check
from tests.benchmarks.sizing.formula import Load, replicas, scored_after_s
from tests.benchmarks.sizing.simulation import simulate, simulate_groups

# 4 runs of 16 ranks with 2 groups: bursts of 32 groups of 1 s, one in 40 s from each.
LOAD = Load(ranks=64, ranks_a_run=16, groups=2, step_s=40, hidden_s=10, cost_s=1.0, longest_s=3.0)


def test_work_and_bursts_are_counted_by_run() -> None:
    assert (LOAD.runs, LOAD.burst) == (4, 32)
    assert LOAD.work == 4 * 32 / 40  # 3.2 workers are busy


def test_a_burst_takes_its_own_time_and_its_share_of_the_queue() -> None:
    # 8 workers: alone 4 s; used 0.4, so ln(40) / 1.2 = 3.07 bursts of 4 s queue, and 3 at most, as there are 3 others.
    assert scored_after_s(LOAD, 8) == pytest.approx(4 + 3 + 3 * 4)
    # 16 workers: alone 2 s; used 0.2: ln(20) / 1.6 = 1.87.
    assert scored_after_s(LOAD, 16) == pytest.approx(2 + 3 + 2 * math.log(20) / 1.6)
    assert scored_after_s(LOAD, 3) == math.inf


def test_replicas_are_the_fewest_that_are_in_time() -> None:
    assert replicas(LOAD, 8) == 2
    assert replicas(dataclasses.replace(LOAD, hidden_s=19), 8) == 1


def test_a_group_that_takes_longer_than_what_is_hidden_cannot_be_in_time() -> None:
    with pytest.raises(ValueError, match=r"a group may take 20 s and 10 s are hidden: no number of replicas"):
        replicas(dataclasses.replace(LOAD, longest_s=20.0), 8)


@pytest.mark.parametrize("workers", [4, 8, 40])
def test_bursts_as_events_are_scored_no_sooner_than_group_by_group_and_not_much_later(workers: int) -> None:
    coarse, exact = simulate(LOAD, workers, 86_400), simulate_groups(LOAD, workers, 86_400)
    assert exact.scored_p99_s < coarse.scored_p99_s < 1.6 * exact.scored_p99_s
    assert coarse.used == pytest.approx(exact.used, rel=0.15)  # of which the time limit cuts some


def test_a_service_that_is_too_small_slows_its_trainers_to_its_own_rate() -> None:
    # 1 worker for 3.2: a burst is done every 32 s, so the four runs take 128 s a step in place of 40.
    found = simulate(LOAD, 1, 86_400)
    assert found.used == pytest.approx(1.0, abs=0.02)
    assert found.steps == pytest.approx(4 * 86_400 / 128, rel=0.05)
    assert found.late > 0.99


def test_what_the_formula_gives_keeps_simulated_trainers_from_waiting(capsys: pytest.CaptureFixture[str]) -> None:
    assert check(LOADS, 86_400)
    assert "every step but one in a hundred was scored in time" in capsys.readouterr().out
    assert all(load.work < WORKERS * replicas(load, WORKERS) for load in LOADS.values())
