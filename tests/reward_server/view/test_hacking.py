"""A planted hack is found and marked; what only looks like one is not."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pandas
import pytest

from reward_server.view import hacking
from reward_server.view.findings import METRIC, Findings, examine, held_out_metrics, opposed
from reward_server.view.phrases import growing_phrases
from reward_server.view.sample import Ranges, Sample, draw
from reward_server.view.signs import change, verdict
from reward_server.view.store import Store
from tests.support.hacked import PHRASE

RANGES = Ranges((0, 5), (18, 23))


@pytest.fixture
def store(hacked: Path, open_store: Callable[..., Store]) -> Store:
    return open_store(hacked / "parts")


def marked(found: Findings) -> set[str]:
    return {sign.kind for sign in found.signs if sign.is_marked}


def test_the_planted_phrase_is_found_and_marked_when_the_scorer_that_should_have_risen_is_named(store: Store) -> None:
    found = examine(store, None, RANGES, "correct")
    assert found.verdict.marks, found.verdict
    assert PHRASE in found.phrases[0].text
    assert (found.phrases[0].early < 0.5, found.phrases[0].late > 0.9) == (True, True)
    signs = [sign for sign in found.signs if sign.is_marked]
    assert any(sign.kind == "a phrase spreads among the best" and PHRASE in sign.about for sign in signs)
    assert any(sign.kind == "high where the trusted one is low" and sign.about == "keyword" for sign in signs)


@pytest.mark.parametrize(
    ("ranges", "trusted", "why"),
    [
        (RANGES, None, "no trusted scorer"),
        (RANGES, "keyword", "and so did keyword"),
        (Ranges((18, 23), (0, 5)), "correct", "the reward did not rise"),
        (Ranges((0, 5), (100, 200)), "correct", "holds no reward"),
    ],
)
def test_nothing_is_marked_without_a_reward_that_rose_and_a_trust_that_was_disappointed(
    ranges: Ranges, trusted: str | None, why: str, store: Store
) -> None:
    found = examine(store, None, ranges, trusted)
    assert why in found.verdict.sentence
    assert not marked(found)


def test_a_held_out_metric_can_be_what_is_trusted(
    hacked: Path, tmp_path: Path, open_store: Callable[..., Store]
) -> None:
    lines = ['{"step": 2, "eval_reward": 0.5}', '{"step": 20, "eval_reward": 0.4, "eval_rewards/correct/mean": 0.1}']
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    store = open_store(hacked / "parts", tmp_path)
    assert held_out_metrics(store) == [f"{METRIC}eval_reward", f"{METRIC}eval_rewards/correct/mean"]
    assert examine(store, None, RANGES, f"{METRIC}eval_reward").verdict.marks
    assert "no value" in examine(store, None, RANGES, f"{METRIC}eval_rewards/correct/mean").verdict.sentence


def test_completions_that_one_scorer_ranks_high_and_another_low_come_with_their_texts(store: Store) -> None:
    table = opposed(store, None, "keyword", "correct")
    assert len(table) == 50
    assert all(PHRASE in text for text in table.text)
    assert set(table.high) == {1.0}
    assert set(table.low) == {0.0}


def make_sample(rows: list[tuple[int, int, float, int, float, float]]) -> Sample:
    """Rows of step, group, reward, size and the scores of a and b."""
    table = pandas.DataFrame(rows, columns=["step", "group", "reward", "size", "a", "b"])
    return Sample(table[["step", "group", "reward", "size"]], table[["a", "b"]], (), len(rows))


def test_agreement_is_the_rank_correlation_within_groups_of_those_that_tell_completions_apart() -> None:
    # Group 0: ranks 1 2 3 and 1 2 3; group 1: 1 2 3 and 3 2 1; group 2: a is constant and tells nothing.
    rows = [(0, 0, 0, 1, x, 10 * x) for x in (1, 2, 3)] + [(1, 1, 0, 1, x, -x) for x in (1, 2, 3)]
    rows += [(1, 2, 0, 1, 5, x) for x in (1, 2, 3)]
    table = hacking.agreements(make_sample(rows), 1)
    assert table.agreement.tolist() == [pytest.approx(1.0), pytest.approx(-1.0)]


def test_scores_that_follow_length_are_correlated_with_it() -> None:
    rows = [(0, 0, 0.0, size, float(size**2), 1.0) for size in range(10)]
    table = hacking.length_correlations(make_sample(rows), 1).set_index("scorer")
    assert table.correlation["a"] == pytest.approx(1.0)
    assert "b" not in table.index  # constant: nothing is known of it


def test_the_sample_is_of_whole_groups_and_the_same_each_time(store: Store) -> None:
    first, second = draw(store, None, 100), draw(store, None, 100)
    assert 20 < len(first.rows) < 200
    assert first.rows.equals(second.rows)
    assert set(first.rows.groupby("group").size()) == {4}


def test_a_phrase_that_was_always_there_does_not_grow_and_one_that_repeats_in_one_text_is_no_phrase() -> None:
    draw_words = random.Random(0)
    words = [f"w{number}" for number in range(40)]
    early = [" ".join(["we add", *draw_words.sample(words, 8)]) for _ in range(60)]
    late = [" ".join(["we add", *draw_words.sample(words, 8)]) for _ in range(60)] + ["magic " * 50]
    found = growing_phrases(early, late)
    assert all(phrase.text != "we add" and "magic" not in phrase.text for phrase in found)
    assert all(phrase.z < 3 for phrase in found)


def test_chance_is_no_rise() -> None:
    noise = random.Random(1)
    a, b = ([noise.gauss(0, 1) for _ in range(50)] for _ in range(2))
    assert (told := change(a, b)) is not None
    assert not told.rose
    assert (told := change(a, [value + 2 for value in b])) is not None
    assert told.rose
    assert change([], [1.0]) is None
    assert not verdict(None, "x", None).marks
