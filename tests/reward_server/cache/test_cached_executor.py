"""A score is computed once and then known, by content; failures are not kept, and what a function logs is."""

from __future__ import annotations

import dataclasses

import pytest

from reward_server.cache.cache import Cache
from reward_server.errors import InvalidGroupError
from reward_server.scorers.base import Result, failed, to_scores
from reward_server.scorers.registry import build, parse_options
from reward_server.types import Completion, Group, Status
from tests.support.builders import make_group
from tests.support.caching import DESCRIPTION, cached
from tests.support.tally import Tally, lengths, values


async def test_a_group_is_scored_once_and_then_known() -> None:
    cache, tally = Cache(1 << 20), Tally()
    first = await cached(cache, tally).run(make_group(["a", "bb"]))
    again = await cached(cache, tally).run(make_group(["a", "bb"], group_id="h", step=7, run_id="other"))
    assert values(first) == values(again) == [1.0, 2.0]
    assert (first.compute_s, again.compute_s) == (2.0, 0.0)
    assert tally.calls == [["a", "bb"]]
    assert (cache.counts["s"].hits, cache.counts["s"].misses) == (2, 2)


async def test_only_what_is_not_known_of_a_group_is_scored_and_equal_siblings_once() -> None:
    cache, tally = Cache(1 << 20), Tally()
    await cached(cache, tally).run(make_group(["a", "bb"]))
    mixed = await cached(cache, tally).run(make_group(["ccc", "bb", "ccc", "dddd"]))
    assert values(mixed) == [3.0, 2.0, 3.0, 4.0]
    assert tally.calls == [["a", "bb"], ["ccc", "dddd"]]
    counts = cache.counts["s"]
    assert (counts.hits, counts.shared, counts.misses) == (1, 1, 4)


@pytest.mark.parametrize(
    "other",
    [
        make_group(["a"], prompt="q"),
        make_group(["a"], columns={"x": 1.0}),
        make_group(["a"], columns={"x": True}),
        make_group([[{"role": "assistant", "content": "a"}]], columns={"x": 1}),
        Group("p", (Completion("a", token_ids=(1,)),), {"x": 1}),
        Group("p", (Completion("a", columns={"y": 1}),), {"x": 1}),
    ],
    ids=["prompt", "type of a column", "bool column", "messages", "token ids", "a column of its own"],
)
async def test_another_content_is_another_score(other: Group) -> None:
    cache, tally = Cache(1 << 20), Tally()
    await cached(cache, tally).run(make_group(["a"], columns={"x": 1}))
    await cached(cache, tally).run(other)
    assert len(tally.calls) == 2


async def test_it_does_not_matter_whether_a_prompt_or_a_column_is_the_groups_or_the_completions() -> None:
    cache, tally = Cache(1 << 20), Tally()
    await cached(cache, tally).run(make_group(["a"], prompt="p", columns={"x": 1, "y": 2}))
    await cached(cache, tally).run(Group("q", (Completion("a", prompt="p", columns={"y": 2}),), {"x": 1, "y": 3}))
    assert len(tally.calls) == 1


async def test_options_and_version_are_in_the_key_and_weight_and_time_limit_are_not() -> None:
    cache, tally = Cache(1 << 20), Tally()
    for options in ({}, {"weight": 3.0, "timeout_s": 1.0}, {"max": 10}, {"name": "t"}):
        await cached(cache, tally, **options).run(make_group(["a"]))
    assert len(tally.calls) == 3
    scorer = build(parse_options({"type": "length", "name": "s", "max": 9}))
    await cache.around(tally, scorer, dataclasses.replace(DESCRIPTION, version="2")).run(make_group(["a"]))
    assert len(tally.calls) == 4


async def test_a_scorer_that_sees_groups_gives_a_score_again_for_the_same_group_only() -> None:
    cache, tally = Cache(1 << 20), Tally()
    for texts in (["a", "bb"], ["a", "bb"], ["a", "ccc"], ["bb", "a"]):
        await cached(cache, tally, group_aware=True).run(make_group(texts))
    assert tally.calls == [["a", "bb"], ["a", "ccc"], ["bb", "a"]]


@pytest.mark.parametrize("status", [Status.FAILED, Status.TIMEOUT, Status.INVALID])
async def test_a_failure_is_never_kept_and_its_siblings_scores_are(status: Status) -> None:
    def answer(texts: list[str]) -> Result:
        return Result(tuple(s for t in texts for s in (failed(1, status, "no") if t == "bad" else to_scores([1], 1))))

    cache, tally = Cache(1 << 20), Tally(answer)
    for _ in range(2):
        timed = await cached(cache, tally).run(make_group(["a", "bad"]))
        assert [score.status for score in timed.result.scores] == [Status.OK, status]
    assert tally.calls == [["a", "bad"], ["bad"]]


async def test_not_applicable_is_kept() -> None:
    cache, tally = Cache(1 << 20), Tally(lambda texts: Result(to_scores([None] * len(texts), len(texts))))
    for _ in range(2):
        assert values(await cached(cache, tally).run(make_group(["a"]))) == [None]
    assert len(tally.calls) == 1


async def test_a_part_that_cannot_be_scored_alone_is_scored_with_its_siblings() -> None:
    def answer(texts: list[str]) -> Result:
        if not any(texts):
            raise InvalidGroupError("token ids were not sent")
        return Result(to_scores([float(len(t)) for t in texts], len(texts)))

    cache, tally = Cache(1 << 20), Tally(answer)
    await cached(cache, tally).run(make_group(["a"]))
    assert values(await cached(cache, tally).run(make_group(["a", ""]))) == [1.0, 0.0]
    with pytest.raises(InvalidGroupError):
        await cached(cache, tally).run(make_group([""], prompt="q"))


def with_extra(texts: list[str]) -> Result:
    return Result(to_scores([1.0] * len(texts), len(texts)), extra={"length": [len(text) for text in texts]})


def with_mean(texts: list[str]) -> Result:
    mean = sum(map(len, texts)) / len(texts)
    return Result(to_scores([1.0] * len(texts), len(texts)), {"length/mean": mean})


async def test_extra_columns_come_again_with_their_completions() -> None:
    cache, tally = Cache(1 << 20), Tally(with_extra)
    await cached(cache, tally).run(make_group(["a", "bb"]))
    timed = await cached(cache, tally).run(make_group(["bb", "ccc", "a"]))
    assert timed.result.extra == {"length": [2, 3, 1]}
    assert tally.calls[1] == ["ccc"]


async def test_a_metric_is_that_of_the_whole_group_whatever_was_known_before() -> None:
    cache, tally = Cache(1 << 20), Tally(with_mean)
    scorer = cached(cache, tally)
    for texts, mean in ((["a", "bbb"], 2.0), (["a", "bbb"], 2.0), (["a", "ccccc"], 3.0), (["a", "a", "dddd"], 2.0)):
        assert (await scorer.run(make_group(texts))).result.metrics == {"length/mean": mean}
    assert tally.calls == [["a", "bbb"], ["a", "ccccc"], ["a", "a", "dddd"]]


async def test_a_metric_that_turns_up_in_a_part_has_the_group_scored_whole() -> None:
    cache, tally = Cache(1 << 20), Tally(lambda texts: with_mean(texts) if "bbb" in texts else lengths(texts))
    scorer = cached(cache, tally)
    await scorer.run(make_group(["a"]))  # the function logs on some inputs only
    assert (await scorer.run(make_group(["a", "bbb"]))).result.metrics == {"length/mean": 2.0}
    assert tally.calls == [["a"], ["bbb"], ["a", "bbb"]]
