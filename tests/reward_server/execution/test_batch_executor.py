"""A scorer that batches, served: groups of many callers together, and what fails costs itself alone."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, ClassVar

import pytest

from reward_server.client import AsyncRewardClient
from reward_server.config import config_from_mapping
from reward_server.errors import DeadlineError
from reward_server.execution.batcher import Batcher
from reward_server.execution.fair_queue import current_caller
from reward_server.scorers.base import Result, ScorerOptions, to_score
from reward_server.scorers.batched import BatchedScorer, Sample
from reward_server.serving.scorer_set import ScorerSet
from reward_server.serving.server import RewardServer
from reward_server.types import Group, GroupScores, Score, Status
from tests.support.builders import make_group
from tests.support.waiting import until

OK, FAILED, TIMEOUT, NOT_APPLICABLE = Status.OK, Status.FAILED, Status.TIMEOUT, Status.NOT_APPLICABLE


class LengthOptions(ScorerOptions):
    seconds: float = 0.0
    devices: int = 1


class Lengths(BatchedScorer[LengthOptions]):
    """The length of a text. It takes `seconds` a batch, until its gate opens for "hangs", and raises for some."""

    Options = LengthOptions
    max_batch_tokens = 100

    gate = threading.Event()
    seen: ClassVar[list[list[str]]] = []
    running: ClassVar[set[int]] = set()
    most_at_once: ClassVar[int] = 0

    def load(self) -> None:
        type(self).seen, type(self).most_at_once = [], 0

    @property
    def replicas(self) -> int:
        return self.options.devices

    def prepare(self, group: Group) -> Sequence[Sample | Score]:
        if "unreadable" in group.contents():
            raise ValueError("unreadable")
        return [
            Score(NOT_APPLICABLE) if not content else Sample(str(content), len(content)) for content in group.contents()
        ]

    def compute(self, data: Sequence[str], replica: int) -> Sequence[Any]:
        self.seen.append(list(data))
        self.running.add(replica)
        type(self).most_at_once = max(self.most_at_once, len(self.running))
        time.sleep(self.options.seconds)
        self.running.discard(replica)
        if "hangs" in data:
            self.gate.wait(20)
        if "bad" in data:
            raise ValueError("this one is bad")
        return [float("nan") if text == "nan" else float(len(text)) for text in data]

    def finish(self, prepared: Sequence[Sample | Score], outputs: Sequence[Any]) -> Result:
        return Result(tuple(output if isinstance(output, Score) else to_score(output) for output in outputs))


def config(**options: Any) -> Any:
    scorer = {"type": "tests.reward_server.execution.test_batch_executor:Lengths", "name": "lengths", **options}
    return config_from_mapping({"scorers": [scorer], "listen": "127.0.0.1:0"})


@asynccontextmanager
async def scorers(**options: Any) -> AsyncIterator[ScorerSet]:
    loaded = ScorerSet(config(**options))
    await loaded.load()
    try:
        yield loaded
    finally:
        Lengths.gate.set()
        await loaded.close()
        Lengths.gate.clear()


def outcome(scores: GroupScores) -> list[tuple[Status, float | None]]:
    return [(score.status, score.value) for score in scores.scorers[0].scores]


def batcher_of(of: ScorerSet | RewardServer) -> Batcher:
    return of.batchers["lengths"]


async def test_groups_that_wait_share_batches_and_each_gets_its_own_scores() -> None:
    async with scorers(seconds=0.05) as loaded:
        groups = [make_group(["a" * n, "b" * (n + 1)], group_id=str(n)) for n in range(1, 13)]
        scores = await asyncio.gather(*map(loaded.score, groups))
        assert [outcome(each) for each in scores] == [[(OK, n), (OK, n + 1)] for n in range(1, 13)]
        assert batcher_of(loaded).stats.batches < 12
        assert scores[-1].queued_s > 0
        assert all(each.compute_s >= 0.05 for each in scores)


async def test_a_completion_that_fails_costs_its_own_score_whoever_is_in_its_batch(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with scorers(seconds=0.02) as loaded:
        running = asyncio.create_task(loaded.score(make_group(["running"])))
        await until(lambda: Lengths.seen)
        mine, others = await asyncio.gather(
            loaded.score(make_group(["ok", "bad", "nan", ""], group_id="mine")),
            loaded.score(make_group(["aa", "bbb"], group_id="others")),
        )
        await running
    assert outcome(others) == [(OK, 2), (OK, 3)]
    assert outcome(mine) == [(OK, 2), (FAILED, None), (Status.INVALID, None), (NOT_APPLICABLE, None)]
    assert mine.scorers[0].scores[1].message == "ValueError: this one is bad"
    told = [record.getMessage() for record in caplog.records if "this one is bad" in record.getMessage()]
    assert len(told) == 1
    assert told[0].startswith("scorer 'lengths', group 'mine': FAILED: ValueError: this one is bad\nTraceback")


async def test_a_completion_that_cannot_be_prepared_costs_its_own_score() -> None:
    async with scorers() as loaded:
        scores = await loaded.score(make_group(["a", "unreadable", "ccc"]))
        assert outcome(scores) == [(OK, 1), (FAILED, None), (OK, 3)]


async def test_the_limit_is_of_a_batch_and_not_of_its_waiting() -> None:
    async with scorers(seconds=0.15, timeout_s=0.4) as loaded:
        groups = [make_group(["a" * 100], group_id=str(n)) for n in range(6)]
        scores = await asyncio.gather(*map(loaded.score, groups))
        assert [outcome(each) for each in scores] == [[(OK, 100)]] * 6
        assert max(each.queued_s for each in scores) > 0.5
        assert max(each.compute_s for each in scores) < 0.4


async def test_a_batch_that_hangs_is_a_timeout_and_the_other_device_goes_on() -> None:
    async with scorers(devices=2, timeout_s=0.3) as loaded:
        hung = await loaded.score(make_group(["hangs"]))
        assert outcome(hung) == [(TIMEOUT, None)]
        assert hung.scorers[0].scores[0].message == "no score within timeout_s = 0.3 s"
        assert outcome(await loaded.score(make_group(["next"]))) == [(OK, 4)]


async def test_devices_compute_side_by_side() -> None:
    async with scorers(devices=2, seconds=0.2) as loaded:
        groups = [make_group(["a" * 100], group_id=str(n)) for n in range(4)]
        await asyncio.gather(*map(loaded.score, groups))
    assert Lengths.most_at_once == 2


async def test_runs_and_callers_share_the_model() -> None:
    async with scorers(seconds=0.01) as loaded:
        order: list[str] = []

        async def ask(run: str, caller: str) -> None:
            current_caller.set((run, caller))
            await loaded.score(make_group(["a" * 100], run_id=run))
            order.append(run)

        herd = [asyncio.create_task(ask("big", str(n % 4))) for n in range(60)]
        await until(lambda: Lengths.seen)
        small = [asyncio.create_task(ask("small", "0")) for _ in range(3)]
        await asyncio.gather(*herd, *small)
    # 8 groups were begun; then small has every other turn.
    assert order.index("small") <= 14
    assert [n for n, run in enumerate(order) if run == "small"][-1] <= 24


@pytest.mark.slow
async def test_what_a_caller_no_longer_waits_for_is_dropped_before_the_model() -> None:
    server = RewardServer(config())
    await server.startup()
    try:
        async with AsyncRewardClient(server.endpoints[0]) as client:
            running = asyncio.create_task(client.score(make_group(["hangs"], group_id="r"), timeout_s=30))
            await until(lambda: Lengths.seen)
            late = [client.score(make_group([f"gone {n}"], group_id=str(n)), timeout_s=1.0) for n in range(50)]
            ended = await asyncio.gather(*late, return_exceptions=True)
            assert all(isinstance(error, DeadlineError) for error in ended)
            await until(lambda: batcher_of(server).stats.dropped == 50)
            Lengths.gate.set()
            await running
            assert outcome(await client.score(make_group(["after"], group_id="a"), timeout_s=30)) == [(OK, 5)]
        assert Lengths.seen == [["hangs"], ["after"]]
    finally:
        Lengths.gate.clear()
        await server.shutdown()
