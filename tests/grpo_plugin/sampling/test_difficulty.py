"""Which prompts an epoch visits, by their pass shares."""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any

from trl.trainer.utils import RepeatSampler

from grpo_plugin.sampling.difficulty import Difficulty, DifficultySampler, key_of

KEYS = [f"p{number}" for number in range(8)]


def difficulty(**changes: Any) -> Difficulty:
    return Difficulty(**{"band": [0.25, 0.75], "weight": 0.25, "visits": 2, "seed": 0, **changes})


def test_an_epoch_visits_every_prompt_once_until_one_is_outside_the_band() -> None:
    found = difficulty()
    assert found.begin_epoch(KEYS) == list(range(8))
    for key in KEYS:
        found.add(key, 0.5)
    assert found.begin_epoch(KEYS) == list(range(8))


def test_prompts_outside_the_band_are_visited_less_and_the_others_take_their_place() -> None:
    found = difficulty()
    for number, key in enumerate(KEYS):
        found.add(key, [1.0, 0.0, 0.5, 0.5][number % 4])
    visits = Counter(index for _ in range(100) for index in found.begin_epoch(KEYS))
    assert sum(visits.values()) == 800
    # Weights 0.25 and 1 of 5 in all, for 8 visits: 0.4 an epoch for those outside, 1.6 for those inside.
    assert all(abs(visits[index] - (160 if index % 4 > 1 else 40)) <= 20 for index in range(8))


def test_a_prompt_inside_the_band_is_visited_in_every_epoch() -> None:
    found = difficulty()
    for key in KEYS[1:]:
        found.add(key, 0.0)
    assert all(0 in found.begin_epoch(KEYS) for _ in range(50))


def test_only_the_last_visits_count_and_a_visit_without_scores_is_none() -> None:
    found = difficulty(visits=2)
    for share in (0.0, 0.0, 0.5, math.nan, 0.5):
        found.add("p0", share)
    assert found.state()["shares"] == {"p0": [0.5, 0.5]}
    assert found.outside() == 0.0
    found.add("p1", 1.0)
    assert found.outside() == 0.5


def test_the_bounds_belong_to_the_band() -> None:
    found = difficulty()
    found.add("p0", 0.25)
    found.add("p1", 0.75)
    assert found.outside() == 0.0


def test_what_happens_within_an_epoch_counts_from_the_next_one_on() -> None:
    found = difficulty()
    first = found.begin_epoch(KEYS)
    found.add("p0", 1.0)
    resumed = difficulty()
    resumed.load(json.loads(json.dumps(found.state())), within_epoch=True)
    assert resumed.begin_epoch(KEYS) == first
    assert resumed.begin_epoch(KEYS) == found.begin_epoch(KEYS)
    assert resumed.state() == found.state()


def test_a_run_that_resumes_in_its_third_epoch_draws_that_epochs_order() -> None:
    def sampler(of: Difficulty) -> DifficultySampler:
        return DifficultySampler(RepeatSampler(KEYS, 1, shuffle=True, seed=3), of, KEYS)

    found = difficulty()
    whole = sampler(found)
    orders = [list(whole) for _ in range(3)]
    assert len({tuple(order) for order in orders}) == 3
    for within, expected in ((True, orders[2]), (False, list(whole))):
        resumed = difficulty()
        state = {**found.state(), "epochs": 3}
        resumed.load(state, within_epoch=within)
        assert list(sampler(resumed)) == expected


def test_without_any_history_the_order_is_trls() -> None:
    trls = RepeatSampler(KEYS, 2, batch_size=4, repeat_count=2, shuffle=True, seed=5)
    ours = DifficultySampler(
        RepeatSampler(KEYS, 2, batch_size=4, repeat_count=2, shuffle=True, seed=5), difficulty(), KEYS
    )
    assert list(ours) == list(trls)
    assert len(ours) == len(trls)


def test_equal_prompts_have_one_history_and_messages_are_prompts_too() -> None:
    assert key_of("a") == key_of("a") != key_of("b")
    assert key_of([{"role": "user", "content": "a"}]) == key_of([{"content": "a", "role": "user"}]) != key_of("a")
