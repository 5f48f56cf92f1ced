"""Whatever the settings, the weights are stock TRL's: a few random settings here, many by `make exactness`.

EXACTNESS_SETTINGS is the number of settings for each number of ranks, EXACTNESS_SEED the first one's seed. A failure
names its seeds; one of them alone is EXACTNESS_SETTINGS=1 EXACTNESS_SEED=<seed>.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.end_to_end.settings import random_settings
from tests.end_to_end.test_ranks import largest_difference, start_weights, train
from tests.end_to_end.test_step_exactness import pair

COUNT = int(os.environ.get("EXACTNESS_SETTINGS", "3"))
FIRST = int(os.environ.get("EXACTNESS_SEED", "0"))
IN_A_LAUNCH = 10  # so that a launch stays within its time-out

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60 * max(10, COUNT))]

SEEDS = [range(start, min(start + IN_A_LAUNCH, FIRST + COUNT)) for start in range(FIRST, FIRST + COUNT, IN_A_LAUNCH)]


@pytest.mark.parametrize("seeds", SEEDS, ids=lambda seeds: f"seeds {seeds[0]} to {seeds[-1]}")
@pytest.mark.parametrize(("accelerate", "ranks"), [("cpu", 1), ("cpu_ddp", 2)])
def test_weights_are_stock_trls_for_random_settings(
    tiny_model: str, tmp_path: Path, accelerate: str, ranks: int, seeds: range
) -> None:
    settings = {seed: random_settings(seed, ranks) for seed in seeds}
    specs = {}
    for seed, options in settings.items():
        specs[f"stock {seed}"], specs[f"ours {seed}"] = pair(tiny_model, **options)
    results = train(tmp_path, accelerate, **specs)
    start = start_weights(tiny_model)
    moved = {seed: largest_difference(results[f"stock {seed}"][0], start) for seed in seeds}
    apart = {seed: largest_difference(results[f"ours {seed}"][0], results[f"stock {seed}"][0]) for seed in seeds}
    # Rounding grows with what is learnt: some losses weigh a completion by the exponential of a sum over its tokens.
    wrong = [seed for seed in seeds if apart[seed] > 1e-5 + 1e-4 * moved[seed]]
    assert not wrong, [(seed, apart[seed], moved[seed], settings[seed]) for seed in wrong]
    assert max(moved.values()) > 1e-3, "runs that learn nothing would not tell a wrong gradient from a right one"
