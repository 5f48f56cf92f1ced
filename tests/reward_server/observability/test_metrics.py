"""What a server counts: through real calls, read from its page as Prometheus reads it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from reward_server import wire
from reward_server.config import config_from_mapping
from reward_server.errors import ConfigError
from reward_server.execution.batcher import BatchStats
from reward_server.execution.results import TimedResult
from reward_server.observability.metrics import FOLLOWED, Metrics
from reward_server.scorers.base import Result, to_scores
from reward_server.serving.server import RewardServer
from tests.support.builders import make_group
from tests.support.observed import Page
from tests.support.served import FILE, LENGTH, PAGE, misbehaving, page, page_where, served


async def test_calls_scores_and_times_are_counted_by_method_code_scorer_and_status() -> None:
    async with served(LENGTH, misbehaving(), metrics=PAGE) as caller:
        await caller.score(make_group(["ab", "abcd"]))
        await caller.score(make_group(["ab", "raise"]))
        await caller.refusal(make_group(["a"], scorers=("none",)))
        seen = await page_where(caller, lambda seen: not seen("calls_in_flight"))
    assert seen("calls_created_total", method="ScoreGroup") == 3
    assert seen("calls_finished_total", method="ScoreGroup", code="OK") == 2
    assert seen("calls_finished_total", method="ScoreGroup", code="INVALID_ARGUMENT") == 1
    assert seen("scores_total", scorer="short", status="OK") == 4
    assert seen("scores_total", scorer="obeys", status="FAILED") == 1
    assert seen("scorer_wait_seconds_count", scorer="obeys") == 2
    assert seen("scorer_compute_seconds_sum", scorer="obeys") > 0
    assert seen("call_seconds_count", method="ScoreGroup") == 3


async def test_what_is_in_the_server_shows_in_the_gauges_and_is_gone_when_it_is_idle() -> None:
    async with served(misbehaving("slow_async"), metrics=PAGE) as caller:
        pending = asyncio.create_task(caller.score(make_group(["sleep 20", "ab"])))
        busy = await page_where(caller, lambda seen: seen("scorer_groups", scorer="slow_async") == 1)
        assert (busy("calls_in_flight"), busy("queued_groups"), busy("queued_completions")) == (1, 1, 2)
        assert busy("queued_bytes") > 0
        pending.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await pending
        idle = await page_where(caller, lambda seen: not seen("calls_in_flight"))
    assert idle("calls_finished_total", method="ScoreGroup", code="CANCELLED") == 1
    gauges = ("queued_groups", "queued_completions", "queued_bytes")
    assert [idle(name) for name in gauges] == [0, 0, 0]
    assert idle("scorer_groups", scorer="slow_async") == 0


async def test_a_call_that_is_pushed_back_is_a_shed_with_its_reason() -> None:
    limits = {"max_queued_completions": 1}
    async with served(misbehaving("slow_async"), metrics=PAGE, limits=limits) as caller:
        pending = asyncio.create_task(caller.score(make_group(["sleep 20"])))
        await page_where(caller, lambda seen: seen("queued_groups") == 1)
        code, _ = await caller.refusal(make_group(["ab"], group_id="other"))
        seen = await page_where(caller, lambda seen: seen("calls_in_flight") == 1)
        pending.cancel()
        await asyncio.wait({pending})
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert seen("sheds_total", reason="full") == 1
    assert seen("calls_finished_total", method="ScoreGroup", code="RESOURCE_EXHAUSTED") == 1


async def test_no_label_holds_a_run_a_group_a_text_or_a_token(tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text("alice: secret-token\n")
    quotas = {"alice": {"calls_per_minute": 100}}
    async with served(LENGTH, metrics=PAGE, tokens_file=str(tmp_path / "tokens"), quotas=quotas) as caller:
        metadata = (("authorization", "Bearer secret-token"),)
        for index in range(20):
            group = make_group(["some-completion"], prompt="some-prompt", run_id=f"run{index}", group_id=f"g{index}")
            await caller.stub.ScoreGroup(wire.encode_group(group), metadata=metadata)
        seen = await page(caller)
    labels = seen.label_values()
    assert labels >= {"short", "OK", "ScoreGroup"}
    for text in ("run1", "g1", "some-", "secret", "alice"):
        assert not any(text in label for label in labels), text


@pytest.mark.parametrize(
    ("metrics", "says"),
    [
        ({"listen": "0.0.0.0:0"}, "anybody may read the page"),
        ({"listen": "unix:page"}, "write host:port"),
        ({"listen": "9090"}, "metrics.listen: '9090' is neither"),
    ],
)
def test_a_page_that_cannot_be_or_that_others_reach_is_refused(metrics: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=r"metrics\.listen: ") as caught:
        RewardServer(config_from_mapping({"scorers": [LENGTH], "metrics": metrics}))
    assert says in str(caught.value)


@pytest.mark.parametrize("word", [{"metrics": {"allow_insecure": True}}, {"allow_insecure": True}])
def test_a_page_that_others_reach_needs_the_word(word: dict[str, Any]) -> None:
    metrics = {"listen": "0.0.0.0:0", **word.get("metrics", {})}
    RewardServer(config_from_mapping({"scorers": [LENGTH], **word, "metrics": metrics}))


async def test_a_taken_port_is_said_before_a_scorer_is_loaded() -> None:
    async with served(LENGTH, metrics=PAGE) as caller:
        assert caller.server.metrics_url is not None
        taken = caller.server.metrics_url.removeprefix("http://").removesuffix("/metrics")
        loads = {"type": "function", "name": "f", "function": f"{FILE}:there_is_no_such_function"}
        second = RewardServer(config_from_mapping({"scorers": [loads], "metrics": {"listen": taken}}))
        with pytest.raises(ConfigError, match=r"metrics\.listen: cannot listen on"):
            await second.startup()


@dataclass
class Counts:
    """As a batcher counts, or a cache: in plain attributes."""

    batches: int = 0
    rows: int = 0
    hits: int = 0


def test_plain_counters_of_others_are_taken_over_and_go_on_after_a_reload() -> None:
    metrics, batcher, cache = Metrics(), Counts(), Counts()
    metrics.follow(lambda: [("batch", "helpful", batcher), ("cache", "helpful", cache)])
    batcher.batches, batcher.rows, cache.hits = 2, 14, 3
    metrics.refresh()
    batcher.rows = 20
    metrics.refresh()
    batcher = Counts(rows=1)  # another configuration's
    seen = Page(metrics.text())
    assert seen("batched_rows_total", scorer="helpful") == 21
    assert seen("batches_total", scorer="helpful") == 2
    assert seen("cache_hits_total", scorer="helpful") == 3
    assert "cache_misses_total{" not in seen.text  # nobody counts them
    assert all(hasattr(BatchStats(), attribute) for attribute in FOLLOWED["batch"])


PROCESS = """
from reward_server.observability.metrics import Metrics
from reward_server.execution.results import TimedResult
from reward_server.scorers.base import Result, to_scores
metrics = Metrics()
metrics.call_began("ScoreGroup")
metrics.call_ended("ScoreGroup", "OK", 0.1)
metrics.of_scorer("short").scored(TimedResult(Result(to_scores([1.0, 2.0], 2)), 0.1, 0.2))
"""
READ = "from reward_server.observability.metrics import Metrics; print(Metrics().text())"


def test_processes_that_share_a_folder_have_one_page(tmp_path: Path) -> None:
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    for _ in range(2):
        subprocess.run([sys.executable, "-c", PROCESS], env=environment, check=True, timeout=60)
    run = subprocess.run(
        [sys.executable, "-c", READ], env=environment, check=True, timeout=60, capture_output=True, text=True
    )
    seen = Page(run.stdout)
    assert seen("calls_finished_total", method="ScoreGroup", code="OK") == 2
    assert seen("scores_total", scorer="short", status="OK") == 4
    assert seen("scorer_compute_seconds_sum", scorer="short") == pytest.approx(0.4)


def test_a_page_of_one_process_shows_what_a_shared_page_shows(tmp_path: Path) -> None:
    def output(code: str, **environment: str) -> str:
        command = [sys.executable, "-c", code]
        return subprocess.run(
            command, env={**os.environ, **environment}, check=True, timeout=60, capture_output=True, text=True
        ).stdout

    output(PROCESS, PROMETHEUS_MULTIPROC_DIR=str(tmp_path))
    shared = Page(output(READ, PROMETHEUS_MULTIPROC_DIR=str(tmp_path)))
    alone = Page(output(f"{PROCESS}print(metrics.text())"))
    assert shared.samples == {key: value for key, value in alone.samples.items() if key[0].startswith("reward_server_")}


def test_a_status_counts_each_completion_of_its_own() -> None:
    metrics = Metrics()
    metrics.of_scorer("s").scored(TimedResult(Result(to_scores([1.0, None, float("nan")], 3)), 0.5, 2.0))
    seen = Page(metrics.text())
    assert [seen("scores_total", scorer="s", status=s) for s in ("OK", "NOT_APPLICABLE", "INVALID")] == [1, 1, 1]
    assert seen("scorer_wait_seconds_sum", scorer="s") == 0.5
    assert seen("scorer_compute_seconds_bucket", scorer="s", le="2.5") == 1
    assert seen("scorer_compute_seconds_bucket", scorer="s", le="1.0") == 0
