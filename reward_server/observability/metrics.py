"""All metrics of a server, and the page on which Prometheus reads them.

Owns the metrics' names and labels, and the page. Knows nothing of gRPC: callers say what happened in the service's
words. Labels are the configured scorers' names and closed sets (method, code, status, reason). A run, a group, a text
or a token is never a label, so the number of series is bounded.

    metrics = Metrics()
    metrics.call_began("ScoreGroup") … metrics.call_ended("ScoreGroup", "OK", seconds)
    helpful = metrics.of_scorer("helpful")    resolved once; then helpful.groups.inc(), helpful.scored(timed)
    metrics.follow(scorers.counters)          plain counters of batchers and caches
    page = MetricsPage(config.metrics); page.open(); page.close()

Several processes: if PROMETHEUS_MULTIPROC_DIR names a folder when this module is imported, each process writes its
numbers there, and the page of any of them shows the sums (prometheus_client's multiprocess mode). Their supervisor
creates the empty folder before it starts them, and calls `prometheus_client.multiprocess.mark_process_dead(pid)` when
one has ended.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any
from wsgiref.simple_server import WSGIServer

import prometheus_client
from prometheus_client import CollectorRegistry, Metric
from prometheus_client.multiprocess import MultiProcessCollector

from reward_server.addresses import TCP, parse_address
from reward_server.config import MetricsConfig
from reward_server.errors import ConfigError
from reward_server.execution.results import TimedResult
from reward_server.observability.series import Count, Level, Series, SeriesMaker, Times
from reward_server.types import Status

prometheus_client.disable_created_metrics()  # else each counter has a second series with its start time

# From a function on the event loop (a tenth of a millisecond) to a judge that takes minutes.
_SECONDS = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)

# Admission, batchers and caches count in plain attributes and know nothing of metrics: attribute -> name and help text.
# They are counters, and those of admission, which also shrink, gauges.
# A counter whose attribute a source does not have is not counted for it.
FOLLOWED = {
    "admission": {
        "groups": ("queued_groups", "Groups in the server, waiting or being scored."),
        "completions": ("queued_completions", "Their completions."),
        "request_bytes": ("queued_bytes", "The bytes of their requests."),
    },
    "batch": {
        "batches": ("batches", "Batches that went to the model."),
        "rows": ("batched_rows", "Completions in those batches; divided by `batches`, the mean fill in rows."),
        "tokens": ("batched_tokens", "Tokens in those batches, without padding."),
        "padded_tokens": (
            "padded_tokens",
            "Tokens computed, with padding; `batched_tokens` divided by this is the fill.",
        ),
        "dropped": ("dropped_rows", "Completions that never reached the model, since their callers had left."),
        "busy_s": ("device_busy_seconds", "Seconds in which devices computed batches, summed over the devices."),
        "idle_s": (
            "device_idle_seconds",
            "Seconds in which devices did not compute though completions waited, summed over the devices; divided by "
            "the sum of both, the idle share.",
        ),
        "overdue": ("overdue_batches", "Batches that exceeded the time limit."),
    },
    "cache": {
        "hits": ("cache_hits", "Completions whose score was in the cache."),
        "shared": ("cache_shared", "Completions that were being scored for another caller already."),
        "misses": ("cache_misses", "Completions that were scored since their score was not in the cache."),
    },
}

Source = tuple[str, str, object]
"""A key of FOLLOWED, a scorer's name ("" where it is of none), and the object whose attributes are its counters."""


class Metrics:
    """The metrics of one process."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._is_shared = _is_shared()
        if not self._is_shared:
            prometheus_client.ProcessCollector(registry=self._registry)
        self._registry.register(_Refresh(self.refresh))
        make = SeriesMaker(self._registry, self._is_shared, _SECONDS)
        self._created = make.counter("calls_created", "Calls that have started.", "method")
        self._finished = make.counter(
            "calls_finished",
            "Calls that have ended, by gRPC status code; in an idle server as many as were created.",
            "method",
            "code",
        )
        self._in_flight = make.gauge("calls_in_flight", "Calls that have started and not ended.").of()
        self._call_s = make.histogram("call_seconds", "Seconds from a call's request to its response.", "method")
        self._sheds = make.counter("sheds", "Calls that were pushed back: full, share, quota or cohorts.", "reason")
        self._cohorts = make.gauge("cohorts", "Groups whose completions come one by one, until they are scored.").of()
        self._cohorts_finished = make.counter(
            "cohorts_finished", "Such groups that ended: complete, incomplete, timeout or dropped.", "outcome"
        )
        self._scorer_groups = make.gauge("scorer_groups", "Groups that wait for this scorer or are in it.", "scorer")
        self._wait_s = make.histogram("scorer_wait_seconds", "Seconds that a group waited for a scorer.", "scorer")
        self._compute_s = make.histogram("scorer_compute_seconds", "Seconds that a scorer took for a group.", "scorer")
        self._scores = make.counter("scores", "Completions by scorer and status.", "scorer", "status")
        self._records = make.counter("records", "Groups for the record file: written, dropped or failed.", "outcome")
        self._followed: dict[str, Series[Any]] = {
            name: make.gauge(name, text) if kind == "admission" else make.counter(name, text, "scorer")
            for kind, numbers in FOLLOWED.items()
            for name, text in numbers.values()
        }
        for outcome in ("written", "dropped", "failed"):
            self._records.of(outcome)  # 0 from the start, so that an alert on a rate sees the first one
        self._sources: Callable[[], Iterable[Source]] = tuple
        self._seen: dict[tuple[str, str], tuple[object, dict[str, float]]] = {}
        self._refreshing, self._recording = threading.Lock(), threading.Lock()

    # ---------------------------------------------------------------------------------------------------------- calls

    def call_began(self, method: str) -> None:
        self._created.of(method).inc()
        self._in_flight.inc()

    def call_ended(self, method: str, code: str, seconds: float) -> None:
        self._finished.of(method, code).inc()
        self._in_flight.dec()
        self._call_s.of(method).observe(seconds)
        if self._is_shared:  # a page of another process cannot ask for it
            self.refresh()

    def shed(self, reason: str) -> None:
        """Counts a call that was pushed back."""
        self._sheds.of(reason).inc()

    def gathering(self, groups: int, outcome: str = "") -> None:
        """Adds to the gauge of groups that are gathered; one that leaves ended as complete, incomplete, timeout or
        dropped."""
        self._cohorts.inc(groups)
        if outcome:
            self._cohorts_finished.of(outcome).inc()

    def recorded(self, outcome: str, groups: int = 1) -> None:
        """Counts groups for the record file, as written, dropped or failed."""
        with self._recording:  # the thread that writes calls this too
            self._records.of(outcome).inc(groups)

    # -------------------------------------------------------------------------------------------------------- scorers

    def of_scorer(self, scorer: str) -> ScorerMetrics:
        """The metrics of one scorer, by its name."""
        return ScorerMetrics(
            self._scorer_groups.of(scorer),
            self._wait_s.of(scorer),
            self._compute_s.of(scorer),
            lambda status: self._scores.of(scorer, status.name),
        )

    def follow(self, sources: Callable[[], Iterable[Source]]) -> None:
        """From now on includes the counters of these sources. They are asked for each time: a reload replaces them."""
        self._sources = sources

    def refresh(self) -> None:
        """Adds what the followed sources have counted since the last time."""
        with self._refreshing:  # a page is rendered in a thread of its own
            for kind, scorer, source in self._sources():
                labels = (scorer,) if scorer else ()
                known, seen = self._seen.get((kind, scorer), (None, {}))
                now = {name: float(getattr(source, name)) for name in FOLLOWED[kind] if hasattr(source, name)}
                for name, value in now.items():
                    earlier = seen.get(name, 0.0) if known is source else 0.0
                    self._followed[FOLLOWED[kind][name][0]].of(*labels).inc(value - earlier)
                self._seen[kind, scorer] = (source, now)

    def text(self) -> str:
        """The page's content."""
        return prometheus_client.generate_latest(self.registry()).decode()

    def registry(self) -> CollectorRegistry:
        """What a page shows: the metrics of this process, or the sums over all processes that share a folder."""
        return shared_registry() if _is_shared() else self._registry


def shared_registry(folder: str | None = None, refresh: Callable[[], None] | None = None) -> CollectorRegistry:
    """The sums over all processes that write to the folder, by default PROMETHEUS_MULTIPROC_DIR: a supervisor's page.

    `refresh` is called before each page; it has the processes write what they have counted since the last time.
    """
    registry = CollectorRegistry(support_collectors_without_names=True)
    if refresh is not None:
        registry.register(_Refresh(refresh))
    MultiProcessCollector(registry, path=folder)
    return registry


def _is_shared() -> bool:
    return "PROMETHEUS_MULTIPROC_DIR" in os.environ


class ScorerMetrics:
    """The metrics of one scorer, with their label values resolved: for the path of every group."""

    __slots__ = ("_compute_s", "_ok", "_scores_of", "_wait_s", "groups")

    def __init__(self, groups: Level, wait_s: Times, compute_s: Times, scores_of: Callable[[Status], Count]):
        self.groups = groups
        """How many groups the scorer has now. The caller increments and decrements it."""
        self._wait_s = wait_s
        self._compute_s = compute_s
        self._scores_of = scores_of
        self._ok = scores_of(Status.OK)

    def scored(self, timed: TimedResult) -> None:
        """Counts a group's times and the statuses of its completions."""
        self._wait_s.observe(timed.queued_s)
        self._compute_s.observe(timed.compute_s)
        statuses = [score.status for score in timed.result.scores]
        if (ok := statuses.count(Status.OK)) == len(statuses):
            self._ok.inc(ok)
            return
        for status, count in Counter(statuses).items():
            self._scores_of(status).inc(count)


class _Refresh:
    """A collector that comes before others: it has no metrics, but refreshes those that are read after it."""

    def __init__(self, refresh: Callable[[], None]):
        self._refresh = refresh

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterable[Metric]:
        self._refresh()
        return ()


class MetricsPage:
    """The page at http://host:port/metrics. A thread serves it, so that it answers while the event loop is blocked."""

    def __init__(self, config: MetricsConfig, registry: CollectorRegistry):
        """Raises ConfigError for an address that is not host:port."""
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
    """The address of the page. Raises ConfigError if it is not host:port."""
    try:
        address = parse_address(config.listen)
    except ConfigError as error:
        raise ConfigError(f"metrics.{error}") from error
    if not isinstance(address, TCP):
        raise ConfigError(f"metrics.listen: Prometheus reads the page over TCP, not {address}; write host:port")
    return address
