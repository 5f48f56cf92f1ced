"""How a batch is filled: how much is asked for, what goes where, what is left for the next."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from grpo_plugin.sampling.refill import Filling, PassShare, Round, Spare, filled, sizes, spares_of, unit_of
from grpo_plugin.sampling.sampled import Sampled
from reward_server.types import Score, Status

SIZE = 2
LOST = {"s": Score(Status.FAILED, message="lost")}


def sampled(name: str, old: bool = False) -> Sampled:
    row = {"prompt": name}
    known = torch.zeros(1) if old else None
    return Sampled(row, name, [1], [2], None, name, None, {}, None, None, old_log_probs=known)


def round_of(groups: int, kept: list[bool], rank: int = 0, ranks: int = 1, name: str = "main") -> Round:
    """A scored round: this rank's rows, and the scores of all."""
    rows = groups * SIZE // ranks
    names = [f"{name}{row}" for row in range(rank * rows, (rank + 1) * rows)]
    scores_RS = torch.arange(groups * SIZE, dtype=torch.float32)[:, None]
    indices = [100 + group for group in range(groups)] if name != "main" else []
    return Round([sampled(n) for n in names], indices, 0, groups, scores_RS=scores_RS, kept_B=torch.tensor(kept))


def spare(name: str, step: int = 0, **more: Any) -> Spare:
    return Spare(7, step, [sampled(f"{name}0"), sampled(f"{name}1")], torch.full((SIZE, 1), 9.0), **more)


def filling(kept: list[bool], spares: list[Spare], rank: int = 0, ranks: int = 1) -> Filling:
    main = round_of(len(kept), kept, rank, ranks)
    found = Filling(len(kept), ["prompt"], main, spares)
    found.in_flight.clear()
    return found


def names(batch: Any) -> list[str]:
    return [row.prompt for row in batch.rows_N]


def test_kept_groups_stay_where_they_are_and_spares_fill_the_holes_in_order() -> None:
    spares = [spare("a"), spare("b")]
    found = filling([False, True, False], spares)
    batch = filled(found, 0, SIZE)
    assert names(batch) == ["a0", "a1", "main2", "main3", "b0", "b1"]
    assert batch.scores_RS.flatten().tolist() == [9, 9, 2, 3, 9, 9]
    assert batch.dropped_R is None
    assert not batch.has_old
    assert found.surplus() == []


def test_what_does_not_fit_is_the_surplus_and_a_hole_without_a_spare_keeps_its_group() -> None:
    spares = [spare(name) for name in "abc"]
    assert [s.rows_G[0].prompt for s in filling([True, False], spares).surplus()] == ["b0", "c0"]
    short = filling([False, False], spares[:1])
    assert names(filled(short, 0, SIZE)) == ["a0", "a1", "main2", "main3"]


@pytest.mark.parametrize("ranks", [2, 3, 6])
def test_on_several_ranks_each_has_its_rows_of_the_same_batch(ranks: int) -> None:
    spares = [spare("a"), spare("b")]
    parts = [filled(filling([False, True, False], spares, rank, ranks), rank, SIZE) for rank in range(ranks)]
    assert [name for part in parts for name in names(part)] == ["a0", "a1", "main2", "main3", "b0", "b1"]
    assert all(torch.equal(part.scores_RS, parts[0].scores_RS) for part in parts)


def test_drops_and_failures_are_those_of_the_rows_that_are_there() -> None:
    found = filling([False, True], [spare("a", dropped_G=torch.tensor([True, False]), failures_G=[LOST, {}])])
    found.main.dropped_R, found.main.failures_R = torch.tensor([True, True, False, False]), [LOST, LOST, {}, {}]
    batch = filled(found, 0, SIZE)
    assert batch.dropped_R is not None
    assert batch.dropped_R.tolist() == [True, False, False, False]
    assert [bool(failures) for failures in batch.failures_R] == [True, False, False, False]
    replaced = filling([False, True], [spare("a")])
    replaced.main.dropped_R = torch.tensor([True, True, False, False])
    assert filled(replaced, 0, SIZE).dropped_R is None, "nobody who was dropped is left"


def test_the_kept_groups_of_a_round_come_whole_from_the_ranks_that_have_their_rows() -> None:
    ranks = [round_of(3, [True, False, True], rank, 2, name="r") for rank in range(2)]
    sent: list[list[Any]] = []

    def alone(rows: list[Any]) -> list[Any]:
        sent.append(rows)
        return [(number, sampled("")) for number in range(6)]

    for rank, part in enumerate(ranks):
        spares_of(part, rank, SIZE, alone)
    everyone = sent[0] + sent[1]
    found = [spares_of(part, rank, SIZE, lambda _: everyone) for rank, part in enumerate(ranks)]
    assert [part.rows_G for part in found[0]] == [part.rows_G for part in found[1]]
    assert [row.prompt for part in found[1] for row in part.rows_G] == ["r0", "r1", "r4", "r5"]
    assert [part.index for part in found[1]] == [100, 102]
    assert [row for row, _ in everyone] == [0, 1, 4, 5], "rows of groups that are not kept do not travel"


def test_it_asks_for_what_is_missing_over_the_share_that_is_kept() -> None:
    found = filling([True, False, False, False], [])
    assert found.wanted(0.5) == 6
    assert found.wanted(1.0) == 3
    assert found.wanted(None) == 0, "nothing is known before the first scores"
    assert found.wanted(0.0) == 3 * 12, "at most twelve for one"
    found.add(round_of(6, [True] * 6, name="r"))
    assert found.wanted(0.5) == 0, "what is in flight will do"
    assert found.wanted(0.25) == 6
    assert found.wanted(0.5, oversample=1.5) == 4, "two kept groups more than places"


def test_a_batch_is_full_when_its_own_scores_are_there_and_what_is_in_flight_then_is_not_its_any_more() -> None:
    found = filling([True, False], [spare("a")])
    assert found.is_full
    found.add(round_of(2, [True, True], name="r"))
    assert found.is_full
    assert [part.groups for part in found.take_unneeded()] == [2]
    assert not found.in_flight
    found.main.kept_B = None
    assert not found.is_full, "the holes are not known yet"


def test_the_share_forgets_slowly() -> None:
    share = PassShare()
    assert share.value is None
    share.add(1, 4)
    assert share.value == 0.25
    share.add(4, 4)
    assert share.value == pytest.approx((0.9 + 4) / (3.6 + 4))
    other = PassShare()
    other.load(share.state())
    assert other.value == share.value


@pytest.mark.parametrize(("size", "ranks", "unit"), [(4, 2, 1), (4, 8, 2), (3, 2, 2), (8, 1, 1), (6, 4, 2)])
def test_groups_come_in_numbers_whose_rows_ranks_can_share(size: int, ranks: int, unit: int) -> None:
    assert unit_of(size, ranks) == unit
    assert unit * size % ranks == 0


def test_many_groups_are_generated_in_parts_of_a_batch() -> None:
    assert list(sizes(9, most=4, unit=2)) == [4, 4, 2]
    assert list(sizes(0, most=4, unit=2)) == []
