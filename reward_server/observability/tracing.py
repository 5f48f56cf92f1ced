"""Spans of OpenTelemetry, where the process has it: a client's call, its serving, and each scorer in it.

Owns the spans and how they are tied over the wire (W3C `traceparent`, as gRPC metadata). Knows nothing of exporters:
who runs a process sets them up, by `opentelemetry-instrument` or in code. In a process that has not imported
opentelemetry nothing is imported and nothing happens. Attributes are ids and counts; texts and tokens are none.

    with span("reward.scorer", {"scorer": "helpful"}) as current:        current in this task; ends with the block
        current.set_attribute("queued_s", 0.1)
    metadata = trace_metadata()                                            the current span, for a call's metadata
    with span("reward.serve", parent=metadata_of_the_caller): ...

opentelemetry-instrumentation-grpc is not used: its asyncio client swallows cancellation (otel-contrib 3271).
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

_TRACEPARENT = "traceparent"
_KEYS = (_TRACEPARENT, "tracestate")

Metadata = tuple[tuple[str, str], ...]


class _NoSpan:
    """Where there is no OpenTelemetry."""

    def set_attribute(self, name: str, value: Any) -> None: ...
    def set_attributes(self, attributes: Mapping[str, Any]) -> None: ...


@contextlib.contextmanager
def span(
    name: str,
    attributes: Mapping[str, Any] | None = None,
    kind: str = "INTERNAL",
    parent: Iterable[tuple[str, Any]] | None = None,
) -> Iterator[Any]:
    """A span that is the current one while the block lasts; an exception that leaves the block is its error.

    `parent` is a call's metadata, which may tie it to the caller's; without, the current span is its parent.
    """
    trace = _api()
    if trace is None:
        yield _NoSpan()
        return
    context = None if parent is None else _propagator().extract({k: v for k, v in parent if k in _KEYS})
    tracer = trace.get_tracer("reward_server")
    with tracer.start_as_current_span(
        name,
        context,
        kind=trace.SpanKind[kind],
        attributes=attributes,
        record_exception=False,
        set_status_on_exception=False,
    ) as current:
        try:
            yield current
        except BaseException as error:
            _set_error(current, error)
            raise


def start_client_span(name: str, attributes: Mapping[str, Any]) -> tuple[Any, Metadata]:
    """A client's span that is nobody's current one, for a call that outlives the caller's frame; and what carries it.
    Who began it ends it by `end_span`."""
    trace = _api()
    if trace is None:
        return None, ()
    kind = trace.SpanKind.CLIENT
    current = trace.get_tracer("reward_server").start_span(name, kind=kind, attributes=attributes)
    return current, _carried(trace.set_span_in_context(current))


def end_span(current: Any, error: BaseException | None) -> None:
    """Ends what `start_client_span` started."""
    if current is None:
        return
    if error is not None:
        _set_error(current, error)
    current.end()


def trace_metadata() -> Metadata:
    """The current span as metadata of a call; none if there is none."""
    return () if _api() is None else _carried(None)


def _set_error(current: Any, error: BaseException) -> None:
    """By its kind alone: a message may quote what was scored."""
    trace = _api()
    current.set_status(trace.Status(trace.StatusCode.ERROR, type(error).__name__))


def _carried(context: Any) -> Metadata:
    carrier: dict[str, str] = {}
    _propagator().inject(carrier, context)
    return tuple(carrier.items())


def _api() -> Any:
    return sys.modules.get("opentelemetry.trace")


def _propagator() -> Any:
    from opentelemetry.trace.propagation.tracecontext import (  # noqa: PLC0415 - only where the process has it
        TraceContextTextMapPropagator,
    )

    return TraceContextTextMapPropagator()
