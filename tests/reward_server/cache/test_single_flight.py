"""Callers that ask for the same scores at once share one computation, and nobody waits for one that is given up."""

from __future__ import annotations

import asyncio
from random import Random
from types import SimpleNamespace

from reward_server.cache.cache import Cache
from reward_server.errors import InvalidGroupError
from reward_server.execution.results import TimedResult
from reward_server.scorers.base import Result, failed, to_scores
from reward_server.types import Group, Status
from tests.support.builders import make_group
from tests.support.caching import cached
from tests.support.tally import Tally, turns, values


async def test_one_group_asked_for_by_many_at_once_is_scored_once() -> None:
    cache, tally = Cache(1 << 20), Tally(hold=True)
    scorer = cached(cache, tally)
    callers = [asyncio.create_task(scorer.run(make_group(["a", "bb"], group_id=str(i)))) for i in range(64)]
    await turns()
    tally.let_go.set()
    assert {tuple(values(timed)) for timed in await asyncio.gather(*callers)} == {(1.0, 2.0)}
    assert len(tally.calls) == 1
    assert (cache.counts["s"].misses, cache.counts["s"].shared) == (2, 126)


async def test_a_completion_that_another_group_is_being_scored_for_is_waited_for() -> None:
    cache, tally = Cache(1 << 20), Tally(hold=True)
    scorer = cached(cache, tally)
    callers = [asyncio.create_task(scorer.run(make_group(t))) for t in (["a", "bb"], ["bb", "ccc"], ["bb"])]
    await turns()
    tally.let_go.set()
    assert [values(timed) for timed in await asyncio.gather(*callers)] == [[1.0, 2.0], [2.0, 3.0], [2.0]]
    assert tally.calls == [["a", "bb"], ["ccc"]]


async def test_a_caller_who_leaves_does_not_take_the_score_from_those_who_wait() -> None:
    cache, tally = Cache(1 << 20), Tally(hold=True)
    scorer = cached(cache, tally)
    first, second = (asyncio.create_task(scorer.run(make_group(["a"]))) for _ in range(2))
    await turns()
    first.cancel()
    await turns()
    tally.let_go.set()
    assert values(await second) == [1.0]
    assert len(tally.calls) == 1
    assert first.cancelled()


async def test_when_the_last_caller_leaves_the_scoring_ends_and_the_next_begins_anew() -> None:
    cache, tally = Cache(1 << 20), Tally(hold=True)
    scorer = cached(cache, tally)
    callers = [asyncio.create_task(scorer.run(make_group(["a"]))) for _ in range(2)]
    await turns()
    for caller in callers:
        caller.cancel()
    await asyncio.wait(callers)
    again = asyncio.create_task(scorer.run(make_group(["a"])))  # before the first had time to end
    await turns()
    assert tally.cancelled
    tally.let_go.set()
    assert values(await again) == [1.0]


async def test_who_waits_for_a_part_of_a_group_that_is_given_up_scores_it_himself() -> None:
    cache, tally = Cache(1 << 20), Tally(hold=True)
    scorer = cached(cache, tally)
    first = asyncio.create_task(scorer.run(make_group(["a", "bb"])))
    await turns()
    second = asyncio.create_task(scorer.run(make_group(["bb", "ccc"])))
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
    scorer = cached(cache, tally)
    callers = [asyncio.create_task(scorer.run(make_group(t))) for t in (["bad", "a"], ["bad", "a"], ["a"])]
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

    scorer = cached(Cache(1 << 20), SimpleNamespace(run=compute))
    callers = [asyncio.create_task(scorer.run(make_group(["bad"] * n))) for n in (1, 2, 3, 4)]
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

    scorer = cached(cache, SimpleNamespace(run=compute))

    async def ask(texts: list[str]) -> None:
        nonlocal answered
        try:
            async with asyncio.timeout(random.random() / 50):
                timed = await scorer.run(make_group(texts))
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
    assert scorer.is_idle
    assert cache.in_flight.is_empty
    assert min(answered, cache.counts["s"].hits, cache.counts["s"].shared, cache.memory.evicted) > 50


async def test_closing_ends_what_is_being_scored() -> None:
    cache, tally = Cache(1 << 20), Tally(hold=True)
    caller = asyncio.create_task(cached(cache, tally).run(make_group(["a"])))
    await turns()
    await cache.close()
    await asyncio.wait({caller})
    assert tally.cancelled
