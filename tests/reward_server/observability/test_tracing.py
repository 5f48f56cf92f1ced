"""One trace from a trainer's step to each scorer, over the wire."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from grpo_plugin import RemoteGRPOTrainer
from reward_server.client import AsyncRewardClient, RewardClient
from reward_server.errors import InvalidGroupError
from tests.support.builders import make_dataset, make_group
from tests.support.served import LENGTH, misbehaving, served
from tests.support.servers import function as server_function
from tests.support.training import remote
from tests.support.waiting import until


@pytest.fixture(scope="module")
def exporter() -> InMemorySpanExporter:
    """What a process has exported; OpenTelemetry takes one provider a process."""
    memory = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(memory))
    trace.set_tracer_provider(provider)
    return memory


@pytest.fixture
def spans(exporter: InMemorySpanExporter) -> Iterator[InMemorySpanExporter]:
    exporter.clear()
    yield exporter
    texts = [str(span.attributes) + str(span.status.description) for span in exporter.get_finished_spans()]
    assert not any("secret" in text for text in texts)


def chains(spans: InMemorySpanExporter) -> set[str]:
    """Each span that is nobody's parent, as the path from its root."""
    by_id = {span.context.span_id: span for span in spans.get_finished_spans()}
    parents = {span.parent.span_id for span in by_id.values() if span.parent}

    def path(span: ReadableSpan) -> str:
        name = f"{span.name} {span.attributes['scorer']}" if "scorer" in (span.attributes or {}) else span.name
        return name if span.parent is None else f"{path(by_id[span.parent.span_id])} > {name}"

    return {path(span) for span_id, span in by_id.items() if span_id not in parents}


WHOLE = {f"step > reward.score > reward.serve > reward.scorer {name}" for name in ("short", "obeys")}


@pytest.mark.slow
def test_a_trainers_batch_is_the_root_of_its_groups(
    spans: InMemorySpanExporter, tiny_model: str, tmp_path: Path, serve: Callable[..., Any]
) -> None:
    trainer = RemoteGRPOTrainer(
        tiny_model,
        args=remote(tmp_path, serve(server_function("vowels")), max_steps=1),
        train_dataset=make_dataset(),
    )
    trainer.train()
    assert chains(spans) == {"grpo.batch > reward.score"}, "the server's half is another process's"
    root = next(span for span in spans.get_finished_spans() if span.name == "grpo.batch")
    assert dict(root.attributes or {}) == {"step": 0, "mode": "train"}


async def test_a_threads_call_is_one_trace_from_the_step_to_each_scorer(spans: InMemorySpanExporter) -> None:
    async with served(LENGTH, misbehaving()) as caller:
        with RewardClient(caller.server.endpoints[0], token="secret-token") as client:
            with trace.get_tracer("trainer").start_as_current_span("step"):
                pending = client.submit(make_group(["secret"], run_id="r", step=7))
            await asyncio.wrap_future(pending)
    assert chains(spans) == WHOLE
    of = {span.name: span for span in spans.get_finished_spans()}
    assert len({span.context.trace_id for span in of.values()}) == 1
    assert dict(of["reward.score"].attributes or {}) == {"run_id": "r", "step": 7, "group_id": "g", "completions": 1}
    assert (of["reward.serve"].attributes or {})["step"] == 7
    assert (of["reward.scorer"].attributes or {})["compute_s"] > 0


async def test_groups_that_share_a_call_have_a_trace_each(spans: InMemorySpanExporter) -> None:
    async with served(LENGTH, misbehaving()) as caller:
        with RewardClient(caller.server.endpoints[0]) as client:
            with trace.get_tracer("trainer").start_as_current_span("step"):
                pending = client.submit_all([make_group(["secret"], group_id=name) for name in "ab"])
            await asyncio.gather(*map(asyncio.wrap_future, pending))
    assert chains(spans) == WHOLE
    served_spans = [span for span in spans.get_finished_spans() if span.name == "reward.serve"]
    assert sorted((span.attributes or {})["group_id"] for span in served_spans) == ["a", "b"]
    sent = {span.context.span_id: span for span in spans.get_finished_spans() if span.name == "reward.score"}
    for span in served_spans:
        assert span.parent is not None
        assert sent[span.parent.span_id].attributes["group_id"] == (span.attributes or {})["group_id"]  # type: ignore[index]


async def test_an_asyncio_call_is_one_too(spans: InMemorySpanExporter) -> None:
    async with served(LENGTH, misbehaving()) as caller:
        async with AsyncRewardClient(caller.server.endpoints[0]) as client:
            with trace.get_tracer("trainer").start_as_current_span("step"):
                await client.score(make_group(["ab"]))
    assert chains(spans) == WHOLE


async def test_a_call_that_fails_or_is_cancelled_ends_its_spans_as_errors(spans: InMemorySpanExporter) -> None:
    async with served(misbehaving("slow_async")) as caller:
        with RewardClient(caller.server.endpoints[0]) as client:
            with pytest.raises(InvalidGroupError):
                await asyncio.wrap_future(client.submit(make_group(["ab"], scorers=("none",))))
            await caller.server._service.idle()
            pending = client.submit(make_group(["sleep 600"]))
            await until(lambda: caller.server._service.calls == 1)
            pending.cancel()
            await caller.server._service.idle()
    sent = [span for span in spans.get_finished_spans() if span.name == "reward.score"]
    assert [span.status.description for span in sent] == ["InvalidGroupError", "CancelledError"]
    assert {span.status.status_code for span in sent} == {trace.StatusCode.ERROR}
    ends = [span for span in spans.get_finished_spans() if span.name == "reward.serve"]
    assert [span.status.description for span in ends] == ["InvalidGroupError", "CancelledError"]
    assert {(span.attributes or {})["group_id"] for span in ends} == {"g"}
