"""What was scored before is not scored again, and a cache that is in trouble costs time and nothing else."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable
from concurrent.futures import wait
from pathlib import Path
from random import Random
from typing import Any

import pytest

from reward_server.cache.cache import Cache, ScorerCache
from reward_server.cache.entries import MemoryStore
from reward_server.cache.store import DiskStore
from reward_server.client import RewardClient
from reward_server.config import config_from_mapping
from reward_server.errors import ConfigError, InvalidGroupError
from reward_server.execution.results import ScorerDescription, TimedResult
from reward_server.scorers.base import Result, failed, to_scores
from reward_server.scorers.registry import build, parse_options
from reward_server.serving.scorer_set import ScorerSet
from reward_server.types import Completion, Group, Status
from tests.conftest import function
from tests.support.builders import make_group

SUPPORT = Path(__file__).parents[2] / "support"
DESCRIPTION = ScorerDescription("1", (), deterministic=True, group_aware=False)


def cached(cache: Cache, group_aware: bool = False, **options: Any) -> ScorerCache:
    scorer = build(parse_options({"type": "length", "name": "s", "max": 9, **options}))
    return cache.of(scorer, dataclasses.replace(DESCRIPTION, group_aware=group_aware))


class Tally:
    """A scorer's work: the length of each completion, and what was asked for, call by call."""

    def __init__(self, result: Callable[[list[str]], Result] | None = None, hold: bool = False):
        self.calls: list[list[str]] = []
        self.let_go = asyncio.Event()
        self.cancelled = False
        self._result = result or (lambda texts: Result(to_scores([float(len(t)) for t in texts], len(texts))))
        if not hold:
            self.let_go.set()

    async def __call__(self, group: Group) -> TimedResult:
        texts = [str(content) for content in group.contents()]
        self.calls.append(texts)
        try:
            await self.let_go.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        return TimedResult(self._result(texts), 1.0, 2.0)


def values(timed: TimedResult) -> list[float | None]:
    return [score.value for score in timed.result.scores]


async def turns(count: int = 10) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


# ------------------------------------------------------------------------------------------------------ what is a hit


async def test_a_group_is_scored_once_and_then_known() -> None:
    cache, tally = Cache(1 << 20), Tally()
    first = await cached(cache).score(make_group(["a", "bb"]), tally)
    again = await cached(cache).score(make_group(["a", "bb"], group_id="h", step=7, run_id="other"), tally)
    assert values(first) == values(again) == [1.0, 2.0]
    assert (first.compute_s, again.compute_s) == (2.0, 0.0)
    assert tally.calls == [["a", "bb"]]
    assert (cache.counts["s"].hits, cache.counts["s"].misses) == (2, 2)


async def test_only_what_is_not_known_of_a_group_is_scored_and_equal_siblings_once() -> None:
    cache, tally = Cache(1 << 20), Tally()
    await cached(cache).score(make_group(["a", "bb"]), tally)
    mixed = await cached(cache).score(make_group(["ccc", "bb", "ccc", "dddd"]), tally)
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
    await cached(cache).score(make_group(["a"], columns={"x": 1}), tally)
    await cached(cache).score(other, tally)
    assert len(tally.calls) == 2


async def test_it_does_not_matter_whether_a_prompt_or_a_column_is_the_groups_or_the_completions() -> None:
    cache, tally = Cache(1 << 20), Tally()
    await cached(cache).score(make_group(["a"], prompt="p", columns={"x": 1, "y": 2}), tally)
    await cached(cache).score(Group("q", (Completion("a", prompt="p", columns={"y": 2}),), {"x": 1, "y": 3}), tally)
    assert len(tally.calls) == 1


async def test_options_and_version_are_in_the_key_and_weight_and_time_limit_are_not() -> None:
    cache, tally = Cache(1 << 20), Tally()
    for options in ({}, {"weight": 3.0, "timeout_s": 1.0}, {"max": 10}, {"name": "t"}):
        await cached(cache, **options).score(make_group(["a"]), tally)
    assert len(tally.calls) == 3
    scorer = build(parse_options({"type": "length", "name": "s", "max": 9}))
    await cache.of(scorer, dataclasses.replace(DESCRIPTION, version="2")).score(make_group(["a"]), tally)
    assert len(tally.calls) == 4


async def test_a_scorer_that_sees_groups_gives_a_score_again_for_the_same_group_only() -> None:
    cache, tally = Cache(1 << 20), Tally()
    for texts in (["a", "bb"], ["a", "bb"], ["a", "ccc"], ["bb", "a"]):
        await cached(cache, group_aware=True).score(make_group(texts), tally)
    assert tally.calls == [["a", "bb"], ["a", "ccc"], ["bb", "a"]]


@pytest.mark.parametrize("status", [Status.FAILED, Status.TIMEOUT, Status.INVALID])
async def test_a_failure_is_never_kept_and_its_siblings_scores_are(status: Status) -> None:
    def answer(texts: list[str]) -> Result:
        return Result(tuple(s for t in texts for s in (failed(1, status, "no") if t == "bad" else to_scores([1], 1))))

    cache, tally = Cache(1 << 20), Tally(answer)
    for _ in range(2):
        timed = await cached(cache).score(make_group(["a", "bad"]), tally)
        assert [score.status for score in timed.result.scores] == [Status.OK, status]
    assert tally.calls == [["a", "bad"], ["bad"]]


async def test_not_applicable_is_kept() -> None:
    cache, tally = Cache(1 << 20), Tally(lambda texts: Result(to_scores([None] * len(texts), len(texts))))
    for _ in range(2):
        assert values(await cached(cache).score(make_group(["a"]), tally)) == [None]
    assert len(tally.calls) == 1


async def test_a_part_that_cannot_be_scored_alone_is_scored_with_its_siblings() -> None:
    def answer(texts: list[str]) -> Result:
        if not any(texts):
            raise InvalidGroupError("token ids were not sent")
        return Result(to_scores([float(len(t)) for t in texts], len(texts)))

    cache, tally = Cache(1 << 20), Tally(answer)
    await cached(cache).score(make_group(["a"]), tally)
    assert values(await cached(cache).score(make_group(["a", ""]), tally)) == [1.0, 0.0]
    with pytest.raises(InvalidGroupError):
        await cached(cache).score(make_group([""], prompt="q"), tally)


# ------------------------------------------------------------------------------------------- what a function has logged


def with_extra(texts: list[str]) -> Result:
    return Result(to_scores([1.0] * len(texts), len(texts)), extra={"length": [len(text) for text in texts]})


def with_mean(texts: list[str]) -> Result:
    mean = sum(map(len, texts)) / len(texts)
    return Result(to_scores([1.0] * len(texts), len(texts)), {"length/mean": mean})


async def test_extra_columns_come_again_with_their_completions() -> None:
    cache, tally = Cache(1 << 20), Tally(with_extra)
    await cached(cache).score(make_group(["a", "bb"]), tally)
    timed = await cached(cache).score(make_group(["bb", "ccc", "a"]), tally)
    assert timed.result.extra == {"length": [2, 3, 1]}
    assert tally.calls[1] == ["ccc"]


async def test_a_metric_is_that_of_the_whole_group_whatever_was_known_before() -> None:
    cache, tally = Cache(1 << 20), Tally(with_mean)
    scorer = cached(cache)
    for texts, mean in ((["a", "bbb"], 2.0), (["a", "bbb"], 2.0), (["a", "ccccc"], 3.0), (["a", "a", "dddd"], 2.0)):
        assert (await scorer.score(make_group(texts), tally)).result.metrics == {"length/mean": mean}
    assert tally.calls == [["a", "bbb"], ["a", "ccccc"], ["a", "a", "dddd"]]


async def test_a_metric_that_turns_up_in_a_part_has_the_group_scored_whole() -> None:
    cache = Cache(1 << 20)
    scorer = cached(cache)
    await scorer.score(make_group(["a"]), Tally())  # a function that logs on some inputs only
    tally = Tally(with_mean)
    assert (await scorer.score(make_group(["a", "bbb"]), tally)).result.metrics == {"length/mean": 2.0}
    assert tally.calls == [["bbb"], ["a", "bbb"]]


# -------------------------------------------------------------------------------------------------------- single flight


async def test_one_group_asked_for_by_many_at_once_is_scored_once() -> None:
    cache, tally = Cache(1 << 20), Tally(hold=True)
    scorer = cached(cache)
    callers = [asyncio.create_task(scorer.score(make_group(["a", "bb"], group_id=str(i)), tally)) for i in range(64)]
    await turns()
    tally.let_go.set()
    assert {tuple(values(timed)) for timed in await asyncio.gather(*callers)} == {(1.0, 2.0)}
    assert len(tally.calls) == 1
    assert (cache.counts["s"].misses, cache.counts["s"].shared) == (2, 126)


async def test_a_completion_that_another_group_is_being_scored_for_is_waited_for() -> None:
    cache, tally = Cache(1 << 20), Tally(hold=True)
    scorer = cached(cache)
    callers = [asyncio.create_task(scorer.score(make_group(t), tally)) for t in (["a", "bb"], ["bb", "ccc"], ["bb"])]
    await turns()
    tally.let_go.set()
    assert [values(timed) for timed in await asyncio.gather(*callers)] == [[1.0, 2.0], [2.0, 3.0], [2.0]]
    assert tally.calls == [["a", "bb"], ["ccc"]]


async def test_a_caller_who_leaves_does_not_take_the_score_from_those_who_wait() -> None:
    cache, tally = Cache(1 << 20), Tally(hold=True)
    scorer = cached(cache)
    first, second = (asyncio.create_task(scorer.score(make_group(["a"]), tally)) for _ in range(2))
    await turns()
    first.cancel()
    await turns()
    tally.let_go.set()
    assert values(await second) == [1.0]
    assert len(tally.calls) == 1
    assert first.cancelled()


async def test_when_the_last_caller_leaves_the_scoring_ends_and_the_next_begins_anew() -> None:
    cache, tally = Cache(1 << 20), Tally(hold=True)
    scorer = cached(cache)
    callers = [asyncio.create_task(scorer.score(make_group(["a"]), tally)) for _ in range(2)]
    await turns()
    for caller in callers:
        caller.cancel()
    await asyncio.wait(callers)
    again = asyncio.create_task(scorer.score(make_group(["a"]), tally))  # before the first had time to end
    await turns()
    assert tally.cancelled
    tally.let_go.set()
    assert values(await again) == [1.0]


async def test_who_waits_for_a_part_of_a_group_that_is_given_up_scores_it_himself() -> None:
    cache, tally = Cache(1 << 20), Tally(hold=True)
    scorer = cached(cache)
    first = asyncio.create_task(scorer.score(make_group(["a", "bb"]), tally))
    await turns()
    second = asyncio.create_task(scorer.score(make_group(["bb", "ccc"]), tally))
    await turns()
    first.cancel()
    await turns()
    tally.let_go.set()
    assert values(await second) == [2.0, 3.0]
    assert tally.calls == [["a", "bb"], ["ccc"], ["bb"]]


async def test_a_failure_is_shared_by_those_who_asked_for_the_same_group_and_by_nobody_else() -> None:
    def answer(texts: list[str]) -> Result:  # a group that times out as a whole, whichever completion it was
        return Result(failed(len(texts), Status.TIMEOUT, "late") if "bad" in texts else to_scores([1], len(texts)))

    cache, tally = Cache(1 << 20), Tally(answer, hold=True)
    scorer = cached(cache)
    callers = [asyncio.create_task(scorer.score(make_group(t), tally)) for t in (["bad", "a"], ["bad", "a"], ["a"])]
    await turns()
    tally.let_go.set()
    ends = [[score.status for score in timed.result.scores] for timed in await asyncio.gather(*callers)]
    assert ends == [[Status.TIMEOUT] * 2, [Status.TIMEOUT] * 2, [Status.OK]]
    assert tally.calls == [["bad", "a"], ["a"]]


async def test_those_who_wait_for_what_fails_do_not_then_wait_for_one_another() -> None:
    at_work: list[asyncio.Event] = []

    async def compute(group: Group) -> TimedResult:
        at_work.append(asyncio.Event())
        await at_work[-1].wait()
        return TimedResult(Result(failed(len(group), Status.TIMEOUT, "late")))

    scorer = cached(Cache(1 << 20))
    callers = [asyncio.create_task(scorer.score(make_group(["bad"] * n), compute)) for n in (1, 2, 3, 4)]
    await turns()
    assert len(at_work) == 1
    at_work[0].set()
    await turns()
    assert len(at_work) == 4
    for event in at_work:
        event.set()
    await asyncio.gather(*callers)


async def test_under_a_storm_of_overlapping_groups_that_fail_and_are_cancelled_every_answer_is_right() -> None:
    random, answered = Random(0), 0
    cache = Cache(2_000)  # eight entries or so: what was known is forgotten again
    scorer = cached(cache)

    async def compute(group: Group) -> TimedResult:
        await asyncio.sleep(random.random() / 500)
        texts = [str(content) for content in group.contents()]
        if "bad group" in texts:
            raise InvalidGroupError("bad")
        return TimedResult(
            Result(
                tuple(s for t in texts for s in (failed(1, Status.FAILED, t) if "-" in t else to_scores([len(t)], 1)))
            )
        )

    async def ask(texts: list[str]) -> None:
        nonlocal answered
        try:
            async with asyncio.timeout(random.random() / 50):
                timed = await scorer.score(make_group(texts), compute)
        except TimeoutError:
            return
        except InvalidGroupError:
            assert "bad group" in texts
            return
        for text, score in zip(texts, timed.result.scores, strict=True):
            assert (score.value, score.message) == ((None, text) if "-" in text else (len(text), ""))
        answered += 1

    words = ["x" * n for n in range(12)] + ["-" * n for n in range(1, 4)] + ["bad group"]

    async def caller() -> None:
        for _ in range(60):
            await ask(random.choices(words, k=random.randint(1, 6)))

    await asyncio.gather(*(caller() for _ in range(20)))
    await turns()
    assert not scorer._flights
    assert not scorer._claims
    assert not cache._tasks
    assert min(answered, cache.counts["s"].hits, cache.counts["s"].shared, cache.memory.evicted) > 50


async def test_closing_ends_what_is_being_scored() -> None:
    cache, tally = Cache(1 << 20), Tally(hold=True)
    caller = asyncio.create_task(cached(cache).score(make_group(["a"]), tally))
    await turns()
    await cache.close()
    await asyncio.wait({caller})
    assert tally.cancelled


# --------------------------------------------------------------------------------------------------------------- memory


def test_memory_keeps_its_bound_and_drops_what_was_not_used_for_longest() -> None:
    memory = MemoryStore(max_bytes=3 * 210)
    for key in (b"aaaaa", b"bbbbb", b"ccccc"):
        memory.put(key, b"value")
    assert memory.get(b"aaaaa") == b"value"
    memory.put(b"ddddd", b"value")
    assert memory.get(b"bbbbb") is None
    assert memory.get(b"aaaaa") == memory.get(b"ddddd") == b"value"
    assert (len(memory), memory.bytes, memory.evicted) == (3, 630, 1)
    memory.put(b"eeeee", b"x" * 1000)
    assert memory.get(b"eeeee") is None
    memory.put(b"aaaaa", b"other")
    assert (memory.get(b"aaaaa"), memory.bytes) == (b"other", 630)


def test_what_memory_says_it_takes_is_not_less_than_what_it_takes() -> None:
    tracemalloc.start()
    try:
        memory = MemoryStore(max_bytes=64 << 20)
        for index in range(20_000):
            memory.put(index.to_bytes(48), f'[[[1,{index},""]],{{}},{{}}]'.encode())
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert taken <= memory.bytes <= 1.5 * taken


# ----------------------------------------------------------------------------------------------------------- configured


def scored_by(scorers: ScorerSet, *groups: Group) -> Any:
    async def run() -> list[Any]:
        await scorers.load()
        try:
            return [await scorers.score(group) for group in groups]
        finally:
            await scorers.close()

    return asyncio.run(run())


@pytest.mark.parametrize("cache", [None, False])
def test_it_is_off_unless_it_is_asked_for(cache: Any) -> None:
    mapping = {"scorers": [{"type": "length", "name": "s", "max": 9}]}
    assert ScorerSet(config_from_mapping(mapping | ({} if cache is None else {"cache": cache}))).cache is None


@pytest.mark.parametrize("cache", [True, {}, {"max_bytes": 1 << 20}])
def test_asked_for_it_answers_for_scorers_that_are_deterministic_only(cache: Any) -> None:
    noisy = function("vowels")
    sure = function("target_share", deterministic=True)
    scorers = ScorerSet(config_from_mapping({"scorers": [noisy, sure], "workers": 1, "cache": cache}))
    group = make_group(["a", "bb"], columns={"target": "ab"})
    first, again = scored_by(scorers, group, group)
    assert first.rewards() == again.rewards()
    assert scorers.cache is not None
    assert {name: counts.hits for name, counts in scorers.cache.counts.items()} == {"target_share": 2}


def test_a_wrong_setting_is_named() -> None:
    with pytest.raises(ConfigError, match=r"cache\.max_bytes: .* 0 is not"):
        config_from_mapping({"scorers": [{"type": "length", "name": "s", "max": 9}], "cache": {"max_bytes": 0}})


# ------------------------------------------------------------------------------------------------------------- the disk


@pytest.fixture
async def open_store(tmp_path: Path) -> AsyncIterator[Callable[..., Any]]:
    stores: list[DiskStore] = []

    async def opened(path: Path = tmp_path / "cache.sqlite", max_bytes: int = 1 << 30) -> DiskStore:
        stores.append(DiskStore(path, max_bytes))
        await stores[-1].open()
        return stores[-1]

    yield opened
    for store in stores:
        await store.close()


async def test_what_one_server_stored_another_finds(open_store: Any) -> None:
    one, other = await open_store(), await open_store()
    one.put({b"k": b"v", b"l": b"w"})
    await one.close()  # which waits until it is written
    assert await other.get([b"k", b"l", b"m"]) == {b"k": b"v", b"l": b"w"}
    assert (one.written, one.lost, one.troubles) == (2, 0, 0)


async def test_more_keys_than_a_query_takes_are_found(open_store: Any) -> None:
    store = await open_store()
    pairs = {index.to_bytes(48): b"v" for index in range(3000)}
    store.put(pairs)
    await store.close()
    assert await (await open_store()).get(list(pairs)) == pairs


async def test_a_full_store_drops_the_oldest(open_store: Any, tmp_path: Path) -> None:
    for batch in range(30):
        store = await open_store(max_bytes=400_000)
        store.put({b"%d/%d" % (batch, index): b"x" * 1000 for index in range(100)})
        await store.close()
    store = await open_store()
    assert len(await store.get([b"29/%d" % index for index in range(100)])) == 100
    assert not await store.get([b"0/%d" % index for index in range(100)])
    assert (tmp_path / "cache.sqlite").stat().st_size < 800_000


async def test_a_damaged_value_is_a_miss_and_is_mended(
    open_store: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = await open_store()
    store.put({b"k": b"[1.0]", b"l": b"[2.0]"})
    await store.close()
    with sqlite3.connect(tmp_path / "cache.sqlite") as connection:
        connection.execute("UPDATE reward_scores_1 SET value = replace(value, '1.0', '9.0')")
    connection.close()
    store = await open_store()
    for _ in range(2):
        assert await store.get([b"k", b"l"]) == {b"l": b"[2.0]"}
    assert caplog.text.count("a value is damaged") == 1
    store.put({b"k": b"[1.0]"})
    await store.close()
    assert await (await open_store()).get([b"k"]) == {b"k": b"[1.0]"}


def garbage(path: Path) -> None:
    path.write_bytes(b"no database" * 1000)


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def overwritten(path: Path) -> None:
    """Every page but the first is noise."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * (size - 4096))


@pytest.mark.parametrize("damage", [garbage, cut_off, overwritten])
async def test_a_corrupted_store_is_an_empty_one_and_is_logged_once(
    open_store: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], None]
) -> None:
    store = await open_store()
    pairs = {index.to_bytes(48): b"v" * 100 for index in range(1000)}
    store.put(pairs)
    await store.close()
    damage(tmp_path / "cache.sqlite")
    store = await open_store()
    for key, value in pairs.items():
        assert await store.get([key]) in ({}, {key: value})  # never another's
    store.put(pairs)
    await store.close()
    told = [record for record in caplog.records if "cache's file" in record.message]
    assert 1 <= len(told) <= 2, "reading and writing once each"
    assert str(tmp_path) in told[0].message


async def test_a_disk_that_hangs_is_waited_for_once_and_used_again_when_it_is_back(
    open_store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reward_server.cache.store._LATE_S", 0.2)
    store = await open_store()
    store.put({b"k": b"v"})
    back = threading.Event()
    store._reader.put(back.wait)
    assert await store.get([b"k"]) == {}
    began = time.perf_counter()
    assert [await store.get([b"k"]) for _ in range(20)] == [{}] * 20
    assert time.perf_counter() - began < 2
    assert store.troubles == 1
    back.set()
    await store._reader.do(lambda: None, 10)  # after all that hung
    assert await store.get([b"k"]) == {b"k": b"v"}


async def test_a_path_that_cannot_be_made_is_logged_and_holds_nothing(
    open_store: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    store = await open_store(tmp_path / "file" / "cache.sqlite")
    store.put({b"k": b"v"})
    assert await store.get([b"k"]) == {}
    assert store.lost == 1
    assert "cannot be opened" in caplog.text


async def test_a_writer_who_is_stopped_in_a_transaction_keeps_nobody_from_reading(
    open_store: Any, tmp_path: Path
) -> None:
    store = await open_store()
    store.put({b"k": b"v"})
    await store.close()
    store = await open_store()
    holder = sqlite3.connect(tmp_path / "cache.sqlite", isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    try:
        store.put({b"l": b"w"})
        assert await asyncio.wait_for(store.get([b"k"]), 0.4) == {b"k": b"v"}
        await store.close()
        assert (store.lost, store.troubles) == (1, 1)
    finally:
        holder.close()


# ------------------------------------------------------------------------------------------------------- real servers


# It writes a line for each call, into the file that the column `tally` names, and takes half a second.
TALLIED = {
    "type": "function",
    "name": "tallied",
    "function": f"{SUPPORT / 'misbehaving.py'}:once_a_call",
    "deterministic": True,
}


def calls(tally: Path) -> int:
    return tally.read_text().count("called") if tally.exists() else 0


@pytest.mark.slow
def test_two_replicas_share_a_store_and_a_herd_is_scored_once(serve: Any, tmp_path: Path) -> None:
    tally = tmp_path / "tally"
    cache = {"path": str(tmp_path / "cache.sqlite")}
    one, other = (serve(TALLIED, cache=cache) for _ in range(2))
    with RewardClient(one.endpoint) as client, RewardClient(other.endpoint) as second:
        herd = [
            client.submit(make_group(["a", "b"], group_id=str(i), columns={"tally": str(tally)}), timeout_s=30)
            for i in range(64)
        ]
        assert all(future.result(30).rewards() == [1.0, 1.0] for future in herd)
        assert calls(tally) == 1
        assert second.score(make_group(["b"], columns={"tally": str(tally)}), timeout_s=30).rewards() == [1.0]
        assert calls(tally) == 1
    os.kill(one.pid, signal.SIGKILL)
    with RewardClient(serve(TALLIED, cache=cache).endpoint) as third:
        third.score(make_group(["a"], columns={"tally": str(tally)}), timeout_s=30)
    assert calls(tally) == 1


@pytest.mark.slow
def test_what_a_function_logs_comes_again_from_disk_as_it_was(serve: Any, tmp_path: Path) -> None:
    cache = {"path": str(tmp_path / "cache.sqlite")}
    answers = []
    for _ in range(2):
        with RewardClient(serve(function("logged", deterministic=True), cache=cache).endpoint) as client:
            answers.append(client.score(make_group(["a", "bbbb"]), timeout_s=30).scorers)
    assert answers[0] == answers[1]
    assert (answers[1][0].metrics, answers[1][0].extra) == ({"lengths/mean": 2.5}, {"length": [1, 4]})


@pytest.mark.slow
def test_what_one_caller_cancels_another_still_gets(serve: Any, tmp_path: Path) -> None:
    tally = tmp_path / "tally"
    server = serve(TALLIED, cache=True)
    groups = [make_group(["a"], group_id=str(i), columns={"tally": str(tally)}) for i in range(2)]
    with RewardClient(server.endpoint) as one, RewardClient(server.endpoint) as other:
        first = one.submit(groups[0], timeout_s=30)
        second = other.submit(groups[1], timeout_s=30)
        while not calls(tally):
            wait([second], timeout=0.01)
        first.cancel()
        assert second.result(30).rewards() == [1.0]
    assert calls(tally) == 1


WRITER = """
import asyncio, sys
from pathlib import Path
from reward_server.cache.store import DiskStore

async def main():
    store = DiskStore(Path(sys.argv[1]), 1 << 30)
    await store.open()
    for batch in range(10**9):
        store.put({b"%d/%d" % (batch, index): b"value of %d" % batch * 20 for index in range(200)})
        await asyncio.sleep(0)
        if store.written > 3000:
            print("going", flush=True)

asyncio.run(main())
"""


TOGETHER = """
import asyncio, sys
from pathlib import Path
from reward_server.cache.store import DiskStore

async def main():
    sys.stdin.readline()
    store = DiskStore(Path(sys.argv[1]), 1 << 30)
    await store.open()
    for batch in range(20):
        store.put({b"%d" % (batch * 50 + index): b"value" for index in range(100)})
        await store.get([b"%d" % index for index in range(100)])
    await store.close()
    print(store.troubles, store.lost)

asyncio.run(main())
"""


@pytest.mark.slow
def test_servers_that_make_the_file_and_write_to_it_at_once_do_not_meet(tmp_path: Path) -> None:
    command = [sys.executable, "-c", TOGETHER, tmp_path / "cache.sqlite"]
    servers = [subprocess.Popen(command, stdin=-1, stdout=-1, text=True) for _ in range(4)]
    for server in servers:
        assert server.stdin is not None
        server.stdin.write("go\n")
        server.stdin.flush()
    assert [server.communicate(timeout=60)[0].split() for server in servers] == [["0", "0"]] * 4


def kill_while_writing(path: Path) -> None:
    writer = subprocess.Popen([sys.executable, "-c", WRITER, path], stdout=subprocess.PIPE)
    assert writer.stdout is not None
    writer.stdout.readline()
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    writer.stdout.close()


@pytest.mark.slow
async def test_killed_in_the_midst_of_writing_it_holds_what_it_had(open_store: Any, tmp_path: Path) -> None:
    for _ in range(3):
        kill_while_writing(tmp_path / "cache.sqlite")
    store = await open_store()
    found = await store.get([b"%d/%d" % (batch, index) for batch in range(5) for index in range(200)])
    assert len(found) == 1000
    assert all(value == b"value of %d" % int(key.partition(b"/")[0]) * 20 for key, value in found.items())
    store.put({b"k": b"v"})
    await store.close()
    assert (store.written, store.troubles) == (1, 0)
    connection = sqlite3.connect(tmp_path / "cache.sqlite")
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()


FULL = """
import asyncio, resource, sys
from reward_server.config import config_from_mapping
from reward_server.serving.scorer_set import ScorerSet
from reward_server.types import Completion, Group

def group(number):
    return Group("p", tuple(Completion(f"{number}/{index}" * 50) for index in range(200)))

async def main():
    scorers = ScorerSet(config_from_mapping(
        {"scorers": [{"type": "length", "name": "short", "max": 9}], "cache": {"path": sys.argv[1]}}
    ))
    await scorers.load()
    limit = int(sys.argv[2])
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    for number in range(30):
        scores = await scorers.score(group(number))
        assert [score.value for score in scores.scorers[0].scores] == [0.0] * 200, scores
        await asyncio.sleep(0.005)
    await scorers.score(group(29))
    store = scorers.cache.store
    await scorers.close()
    print(scorers.cache.counts["short"].hits, store.lost > 0, store.written > 0)

asyncio.run(main())
"""


@pytest.mark.slow
def test_on_a_full_disk_everything_is_scored_and_it_is_said_once(tmp_path: Path) -> None:
    path = tmp_path / "cache.sqlite"
    run = subprocess.run(
        [sys.executable, "-c", FULL, path, str(400_000)], capture_output=True, text=True, timeout=60, check=False
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["200", "True", "True"]
    assert run.stderr.count("cannot be written") == 1, run.stderr
