"""OpenTelemetry spans: of a client's call, of the server's side of the call, and of each scorer in it.

Owns the spans and their propagation over the wire (W3C `traceparent`, as gRPC metadata). Knows nothing of exporters:
whoever runs the process configures them, by `opentelemetry-instrument` or in code. In a process that has not imported
opentelemetry, tracing is off and nothing is imported. Attributes are ids and counts, never texts or tokens.

    with span("reward.scorer", {"scorer": "helpful"}) as current:        the task's current span inside the block
        current.set_attribute("queued_s", 0.1)
    metadata = trace_metadata()                                          carries the current span over the wire
    with span("reward.serve", parent=metadata_of_the_caller): ...

opentelemetry-instrumentation-grpc is not used, since its asyncio client swallows cancellation (otel-contrib 3271).
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

_TRACEPARENT = "traceparent"
TRACE_KEYS = (_TRACEPARENT, "tracestate")
"""The metadata that carries a span over the wire."""

Metadata = tuple[tuple[str, str], ...]


class _NoSpan:
    """Stands for a span while tracing is off."""

    def set_attribute(self, name: str, value: Any) -> None: ...
    def set_attributes(self, attributes: Mapping[str, Any]) -> None: ...


def is_on() -> bool:
    """Whether this process has OpenTelemetry. Code on the path of every group asks before it makes attributes."""
    return _api() is not None


@contextlib.contextmanager
def span(
    name: str,
    attributes: Mapping[str, Any] | None = None,
    kind: str = "INTERNAL",
    parent: Iterable[tuple[str, Any]] | None = None,
) -> Iterator[Any]:
    """A span that is the current one inside the block. An exception that leaves the block becomes its error status.

    `parent` is the metadata of a call, which may hold the caller's span; by default the current span is the parent.
    """
    trace = _api()
    if trace is None:
        yield _NoSpan()
        return
    context = None if parent is None else _propagator().extract({k: v for k, v in parent if k in TRACE_KEYS})
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
    """Starts a span that does not become the current one, for a call that outlives the function that starts it.

    Returns the span, which the caller ends by `end_span`, and the metadata that carries it over the wire.
    """
    trace = _api()
    if trace is None:
        return None, ()
    kind = trace.SpanKind.CLIENT
    current = trace.get_tracer("reward_server").start_span(name, kind=kind, attributes=attributes)
    return current, _carried(trace.set_span_in_context(current))


def end_span(current: Any, error: BaseException | None) -> None:
    """Ends a span of `start_client_span`. Does nothing where tracing was off."""
    if current is None:
        return
    if error is not None:
        _set_error(current, error)
    current.end()


def trace_metadata() -> Metadata:
    """The current span as metadata for a call; empty if there is none."""
    return () if _api() is None else _carried(None)


def _set_error(current: Any, error: BaseException) -> None:
    """Sets the error by its type's name alone, since its message may quote a completion."""
    trace = _api()
    current.set_status(trace.Status(trace.StatusCode.ERROR, type(error).__name__))


def _carried(context: Any) -> Metadata:
    carrier: dict[str, str] = {}
    _propagator().inject(carrier, context)
    return tuple(carrier.items())


def _api() -> Any:
    return sys.modules.get("opentelemetry.trace")


def _propagator() -> Any:
    from opentelemetry.trace.propagation.tracecontext import (  # noqa: PLC0415 - only if the process uses it
        TraceContextTextMapPropagator,
    )

    return TraceContextTextMapPropagator()
