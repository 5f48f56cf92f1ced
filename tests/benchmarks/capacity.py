"""How many replicas a load needs: what groups cost here, a formula, and its check by simulated time.

    python tests/benchmarks/capacity.py [--days 30] [--no-measure]

Measures what a group of 8 completions costs by kind of scorer and how many groups one server process takes, then holds
the formula (`sizing/formula.py`) against a simulation of 1,000 ranks over a month: the number of replicas that it gives
has to keep all but one step in a hundred from waiting, and it is printed how few would have done. Replicas have 8
workers. Says at last where one service of one process would break first.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from reward_server.config import LimitsConfig
from tests.benchmarks.load.settings import table
from tests.benchmarks.sizing import costs
from tests.benchmarks.sizing.formula import Load, replicas, scored_after_s
from tests.benchmarks.sizing.simulation import simulate

WORKERS = 8
COMPLETIONS = 8  # of a group
_DAY_S = 86_400

# Seconds of a worker a group, steps, and what is hidden of them: math, programs, a judge that is asked over HTTP.
LOADS = {
    "math, 16 runs of 64 ranks": Load(1024, 64, groups=4, step_s=30, hidden_s=5, cost_s=0.03, longest_s=1),
    "programs, 16 runs of 64 ranks": Load(1024, 64, groups=4, step_s=60, hidden_s=15, cost_s=1.5, longest_s=6),
    "programs, 4 runs of 256 ranks": Load(1024, 256, groups=4, step_s=60, hidden_s=15, cost_s=1.5, longest_s=6),
    "programs, 128 runs of 8 ranks": Load(1024, 8, groups=4, step_s=60, hidden_s=15, cost_s=1.5, longest_s=6),
    "judges, score_ahead, 16 runs": Load(1024, 64, groups=4, step_s=120, hidden_s=110, cost_s=20, longest_s=60),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--days", type=float, default=30.0, help="simulated days of each load (30)")
    parser.add_argument("--no-measure", action="store_true", help="simulate alone")
    options = parser.parse_args()
    if not options.no_measure:
        say_costs(costs.measure())
    held = check(LOADS, options.days * _DAY_S)
    if not options.no_measure:
        say_limits(costs.groups_a_second())
    return 0 if held else 1


def say_costs(found: Mapping[str, float]) -> None:
    rows = [[kind, f"{1000 * cost_s:.2f}", _rate(cost_s)] for kind, cost_s in found.items()]
    table(["a group of 8 costs", "ms of a worker", f"groups/s of {WORKERS} workers"], rows)


def _rate(cost_s: float) -> str:
    return f"{WORKERS / cost_s:,.0f}" if cost_s > 1e-4 else "the event loop's"


def check(loads: Mapping[str, Load], seconds: float) -> bool:
    """Prints the formula beside the simulation, and says whether all loads that it sized were served in time."""
    rows, held = [], True
    for name, load in loads.items():
        count = replicas(load, WORKERS)
        found = simulate(load, count * WORKERS, seconds)
        least = next(n for n in range(1, count + 1) if n == count or _in_time(load, n, seconds / 10))
        held = held and found.late <= 0.01
        rows.append(
            [
                name,
                f"{count}",
                f"{least}",
                f"{found.used:.0%}",
                f"{scored_after_s(load, count * WORKERS):.1f}",
                f"{found.scored_p99_s:.1f}",
                f"{load.hidden_s:g}",
                f"{found.late:.2%}",
                f"{found.steps:,}",
            ]
        )
    print(f"\nreplicas of {WORKERS} workers, {seconds / _DAY_S:g} simulated days; scored: seconds, in 99 of 100 steps")
    header = "load,replicas,would do,used,scored (formula),scored,hidden,late,steps"
    table(header.split(","), rows)
    print("every step but one in a hundred was scored in time" if held else "NOT all loads were scored in time")
    return held


def _in_time(load: Load, count: int, seconds: float) -> bool:
    return simulate(load, count * WORKERS, seconds, seed=1).late <= 0.01


def say_limits(groups_s: float) -> None:
    """Where one service of one process ends, whatever its scorers cost, for 4 groups a rank in steps of 30 s."""
    limits = LimitsConfig()
    groups = limits.max_queued_completions // COMPLETIONS
    print(
        f"\none server process took {groups_s:,.0f} groups a second of a scorer that costs nothing: "
        f"{groups_s * 30 / 4:,.0f} ranks with 4 groups in 30 s\n"
        f"max_queued_completions ({limits.max_queued_completions:,}) holds {groups:,} groups of {COMPLETIONS}: "
        f"a burst of {groups // 4:,} ranks; what comes beyond is told when to come back\n"
        f"max_queued_bytes ({limits.max_queued_bytes >> 20:,} MiB) holds as many of "
        f"{limits.max_queued_bytes // limits.max_queued_completions // 1024:,} KiB a completion"
    )


if __name__ == "__main__":
    sys.exit(main())
