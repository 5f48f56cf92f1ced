"""Every counter of a server, once, and the page on which Prometheus reads them.

Owns the names, the labels and the page. Knows nothing of gRPC: who counts says what happened in the service's words.
Labels are scorers' names of the configuration and closed sets (method, code, status, reason); a run, a group, a text or
a token is never one, so there are only so many series.

    metrics = Metrics()
    metrics.call_began("ScoreGroup") … metrics.call_ended("ScoreGroup", "OK", seconds)
    with metrics.scoring("helpful") as note:
        note(timed)
    metrics.follow(scorers.counters)          plain counters of batchers and caches
    page = MetricsPage(config.metrics); page.open(); page.close()

Several processes: where PROMETHEUS_MULTIPROC_DIR names a folder when this module is imported, each process writes its
numbers there, and the page of whichever process opens one adds them all up (prometheus_client's multiprocess mode).
Their supervisor makes the folder, empty, before it starts them, and calls `prometheus_client.multiprocess.
mark_process_dead(pid)` when one has ended.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import Counter as Count
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar
from wsgiref.simple_server import WSGIServer

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric
from prometheus_client.multiprocess import MultiProcessCollector

from reward_server.addresses import TCP, parse_address
from reward_server.config import MetricsConfig
from reward_server.errors import ConfigError
from reward_server.execution.results import TimedResult

prometheus_client.disable_created_metrics()  # a second series for each counter, with the time that it began at

T = TypeVar("T")

# From a function on the event loop (a tenth of a millisecond) to a judge that is waited for for minutes.
_SECONDS = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)

# Batchers and caches count in plain attributes and know nothing of pages: attribute -> counter and its help. What a
# source has no attribute for is not counted.
FOLLOWED = {
    "batch": {
        "batches": ("batches", "Batches that went to the model."),
        "rows": ("batched_rows", "Completions in those batches; divided by `batches`, the mean fill in rows."),
        "tokens": ("batched_tokens", "Tokens in those batches, without padding."),
        "padded_tokens": ("padded_tokens", "Tokens that they cost; `batched_tokens` divided by this is the fill."),
        "dropped": ("dropped_rows", "Completions that left before the model saw them: their callers were gone."),
        "busy_s": ("device_busy_seconds", "Seconds in which devices computed batches, added up over the devices."),
        "overdue": ("overdue_batches", "Batches that outlasted the limit."),
    },
    "cache": {
        "hits": ("cache_hits", "Completions whose score the cache had."),
        "shared": ("cache_shared", "Completions that were just being scored for somebody else."),
        "misses": ("cache_misses", "Completions that were scored since the cache had no score."),
    },
}

Source = tuple[str, str, object]
"""A kind of FOLLOWED, a scorer's name, and who counts for it."""


class Metrics:
    """The counters of one process."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_BeforeAPage(self.refresh))
        if not _is_shared():
            prometheus_client.ProcessCollector(registry=self._registry)
        make = _Maker(self._registry)
        self._created = make.counter("calls_created", "Calls that began.", "method")
        self._finished = make.counter(
            "calls_finished",
            "Calls that ended, by gRPC's code; in an idle server as many as were created.",
            "method",
            "code",
        )
        self._in_flight = make.gauge("calls_in_flight", "Calls that have begun and not ended.")
        self._call_s = make.histogram("call_seconds", "From a call's request to its response.", "method")
        self._sheds = make.counter("sheds", "Calls that were told to come back later: full, share or quota.", "reason")
        self._queued_groups = make.gauge("queued_groups", "Groups in the server, waiting or being scored.")
        self._queued_completions = make.gauge("queued_completions", "Their completions.")
        self._queued_bytes = make.gauge("queued_bytes", "The bytes of their requests.")
        self._scorer_groups = make.gauge("scorer_groups", "Groups that wait for this scorer or are in it.", "scorer")
        self._wait_s = make.histogram("scorer_wait_seconds", "A group's wait for its turn at a scorer.", "scorer")
        self._compute_s = make.histogram("scorer_compute_seconds", "A scorer's time for a group.", "scorer")
        self._scores = make.counter("scores", "What became of each completion, by scorer.", "scorer", "status")
        self._records = make.counter("records", "Groups for the record file: written, dropped or failed.", "outcome")
        self._followed = {
            name: make.counter(name, text, "scorer") for kind in FOLLOWED.values() for name, text in kind.values()
        }
        self._sources: Callable[[], Iterable[Source]] = tuple
        self._seen: dict[tuple[str, str], tuple[object, dict[str, float]]] = {}
        self._refreshing = threading.Lock()

    # ------------------------------------------------------------------------------------------------------ the calls

    def call_began(self, method: str) -> None:
        self._created.of(method).inc()
        self._in_flight.of().inc()

    def call_ended(self, method: str, code: str, seconds: float) -> None:
        self._finished.of(method, code).inc()
        self._in_flight.of().dec()
        self._call_s.of(method).observe(seconds)
        self.refresh()

    def shed(self, reason: str) -> None:
        """A call was pushed back."""
        self._sheds.of(reason).inc()

    def queued(self, groups: int, completions: int, request_bytes: int) -> None:
        """So many came into the queue; negative when they leave."""
        self._queued_groups.of().inc(groups)
        self._queued_completions.of().inc(completions)
        self._queued_bytes.of().inc(request_bytes)

    def recorded(self, outcome: str, groups: int = 1) -> None:
        """Groups were written to the record file, dropped before it, or failed to be written."""
        self._records.of(outcome).inc(groups)

    # ---------------------------------------------------------------------------------------------------- the scorers

    @contextlib.contextmanager
    def scoring(self, scorer: str) -> Iterator[Callable[[TimedResult], None]]:
        """A group is at a scorer while the block lasts; what comes of it is noted by what this gives."""
        groups = self._scorer_groups.of(scorer)
        groups.inc()
        try:
            yield lambda timed: self._scored(scorer, timed)
        finally:
            groups.dec()

    def _scored(self, scorer: str, timed: TimedResult) -> None:
        self._wait_s.of(scorer).observe(timed.queued_s)
        self._compute_s.of(scorer).observe(timed.compute_s)
        for status, count in Count([score.status for score in timed.result.scores]).items():
            self._scores.of(scorer, status.name).inc(count)

    def follow(self, sources: Callable[[], Iterable[Source]]) -> None:
        """From now on counts too what these count, whoever they are when it is asked: a reload brings others."""
        self._sources = sources

    def refresh(self) -> None:
        """Takes over what has been counted elsewhere since the last time."""
        with self._refreshing:  # a page is made in a thread of its own
            for kind, scorer, source in self._sources():
                known, seen = self._seen.get((kind, scorer), (None, {}))
                now = {name: float(getattr(source, name)) for name in FOLLOWED[kind] if hasattr(source, name)}
                for name, value in now.items():
                    earlier = seen.get(name, 0.0) if known is source else 0.0
                    self._followed[FOLLOWED[kind][name][0]].of(scorer).inc(value - earlier)
                self._seen[kind, scorer] = (source, now)

    def text(self) -> str:
        """The page's content."""
        return prometheus_client.generate_latest(self.registry()).decode()

    def registry(self) -> CollectorRegistry:
        """What a page shows: this process's numbers, or those of all that share a folder."""
        return shared_registry() if _is_shared() else self._registry


def shared_registry(folder: str | None = None, refresh: Callable[[], None] | None = None) -> CollectorRegistry:
    """The sums over all processes that write to the folder, PROMETHEUS_MULTIPROC_DIR if unsaid: a supervisor's page.

    `refresh` has the processes take over what has been counted in them since the last time.
    """
    registry = CollectorRegistry(support_collectors_without_names=True)
    if refresh is not None:
        registry.register(_BeforeAPage(refresh))
    MultiProcessCollector(registry, path=folder)
    return registry


def _is_shared() -> bool:
    return "PROMETHEUS_MULTIPROC_DIR" in os.environ


class _Maker:
    def __init__(self, registry: CollectorRegistry):
        self._common: dict[str, Any] = {"namespace": "reward_server", "registry": registry}

    def counter(self, name: str, text: str, *labels: str) -> _Series[Counter]:
        return _Series(Counter(name, text, labels, **self._common))

    def gauge(self, name: str, text: str, *labels: str) -> _Series[Gauge]:
        return _Series(Gauge(name, text, labels, multiprocess_mode="livesum", **self._common))

    def histogram(self, name: str, text: str, *labels: str) -> _Series[Histogram]:
        return _Series(Histogram(name, text, labels, buckets=_SECONDS, **self._common))


class _Series(dict[tuple[str, ...], T]):
    """The series of one metric by their labels. Found here they cost a tenth of a look-up in the library."""

    def __init__(self, metric: Any):
        self._metric = metric

    def __missing__(self, labels: tuple[str, ...]) -> T:
        series = self[labels] = self._metric.labels(*labels) if labels else self._metric
        return series

    def of(self, *labels: str) -> T:
        return self[labels]


class _BeforeAPage:
    """The first of a registry's collectors: it has nothing of its own, and others are read after it."""

    def __init__(self, refresh: Callable[[], None]):
        self._refresh = refresh

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterable[Metric]:
        self._refresh()
        return ()


class MetricsPage:
    """The page at http://host:port/metrics, from a thread: it answers while the event loop is blocked, too."""

    def __init__(self, config: MetricsConfig, registry: CollectorRegistry):
        """Raises ConfigError for an address that is none, or no host:port."""
        self.address = page_address(config)
        self._registry = registry
        self._server: WSGIServer | None = None

    def open(self) -> str:
        """Binds, serves and returns the URL, with the real port. Raises ConfigError."""
        host = self.address.host.strip("[]")
        try:
            self._server, _ = prometheus_client.start_http_server(self.address.port, host, self._registry)
        except OSError as error:
            raise ConfigError(
                f"metrics.listen: cannot listen on {self.address}: {error}; choose another port"
            ) from error
        return f"http://{self.address.host}:{self._server.server_port}/metrics"

    def close(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None


def page_address(config: MetricsConfig) -> TCP:
    """Where the page is to be. Raises ConfigError."""
    try:
        address = parse_address(config.listen)
    except ConfigError as error:
        raise ConfigError(f"metrics.{error}") from error
    if not isinstance(address, TCP):
        raise ConfigError(f"metrics.listen: Prometheus reads a page over TCP, not {address}; write host:port")
    return address
