"""Whole groups out of rows that are spread over ranks."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from PIL import Image

from grpo_plugin.rewards.groups import GroupLayout, Row, make_group, whole_groups, with_data_urls


def row(number: int) -> Row:
    return Row(prompt="p", content=f"c{number}", token_ids=[number], columns={})


def run_ranks(rows: int, group_size: int, ranks: int) -> list[dict[int, list[str]]]:
    """What each rank assembles when all of them run at once, with a gather that waits for all of them."""
    barrier = threading.Barrier(ranks, timeout=10)
    shared: list[list[Any]] = [[] for _ in range(ranks)]
    results: list[dict[int, list[str]]] = [{} for _ in range(ranks)]

    def run(rank: int) -> None:
        def gather(mine: list[Any]) -> list[Any]:
            shared[rank] = mine
            barrier.wait()
            return [item for part in shared for item in part]

        rows_N = [row(rank * rows + index) for index in range(rows)]
        groups = whole_groups(rows_N, GroupLayout(rows, group_size, rank, ranks), gather)
        results[rank] = {number: [str(r.content) for r in group] for number, group in groups.items()}

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    return results


@pytest.mark.parametrize(
    ("rows", "group_size", "ranks"),
    [(8, 4, 1), (4, 4, 2), (3, 4, 4), (6, 4, 2), (2, 8, 4), (1, 3, 3), (5, 2, 4), (3, 9, 3), (7, 3, 3)],
)
def test_every_group_is_whole_and_owned_by_exactly_one_rank(rows: int, group_size: int, ranks: int) -> None:
    results = run_ranks(rows, group_size, ranks)
    merged = [item for result in results for item in result.items()]
    groups = rows * ranks // group_size
    assert sorted(number for number, _ in merged) == list(range(groups))
    for number, contents in merged:
        assert contents == [f"c{number * group_size + index}" for index in range(group_size)]


def test_a_group_belongs_to_the_rank_of_its_first_row() -> None:
    # 3 rows a rank, groups of 4: rows 0-3 | 4-7 | 8-11 start on ranks 0, 1 and 2; rank 3 owns none
    results = run_ranks(3, 4, 4)
    assert [sorted(result) for result in results] == [[0], [1], [2], []]


def test_no_rank_talks_where_no_group_straddles() -> None:
    def gather(_: list[Any]) -> list[Any]:
        raise AssertionError("nothing to gather")

    whole_groups([row(index) for index in range(8)], GroupLayout(8, 4, 1, 2), gather)


def test_a_batch_that_does_not_hold_whole_groups_is_refused_with_the_numbers() -> None:
    with pytest.raises(ValueError, match=r"10 rows \(5 on each of 2 ranks\).*groups of 4"):
        GroupLayout(5, 4, 0, 2)


def test_an_image_travels_as_a_png_data_url_and_text_is_left_alone() -> None:
    text = [{"role": "user", "content": "hi"}]
    assert with_data_urls(text) is text
    image = [{"role": "user", "content": [{"type": "image", "image": Image.new("RGB", (2, 2))}, {"type": "text"}]}]
    part = with_data_urls(image)[0]["content"][0]
    assert part["image"].startswith("data:image/png;base64,")
    assert isinstance(image[0]["content"][0]["image"], Image.Image)


def test_token_ids_are_sent_only_when_asked_for() -> None:
    assert make_group([row(1)], token_ids=False).completions[0].token_ids is None
    assert make_group([row(1)], token_ids=True).completions[0].token_ids == (1,)
