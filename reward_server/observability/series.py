"""The series of a metric: counts, levels and histograms that cost the path of a group next to nothing.

Owns the numbers and how a registry reads them. In a process that has its page to itself, a series is a plain attribute,
and the page is made of the attributes when it is read: a change takes a tenth of the time of prometheus_client's own.
Processes that share a page change the library's series, which are in files that they share. Knows nothing of what is
counted.

    make = SeriesMaker(registry, is_shared=False)
    created = make.counter("calls_created", "Calls that have started.", "method")
    created.of("ScoreGroup").inc()

A series is changed in one thread, the event loop's; it is read in any.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.utils import floatToGoString

T = TypeVar("T")
Labels = tuple[str, ...]

_NAMESPACE = "reward_server"


class Count(Protocol):
    """A number that only grows."""

    def inc(self, amount: float = 1, /) -> None: ...


class Level(Count, Protocol):
    """A number that grows and shrinks."""

    def dec(self, amount: float = 1, /) -> None: ...


class Times(Protocol):
    """A histogram of seconds."""

    def observe(self, amount: float, /) -> None: ...


class Series(dict[Labels, T]):
    """The series of one metric by their labels. A look-up here takes a tenth of the library's own `labels()`."""

    def __init__(self, make: Callable[[Labels], T]):
        self._make = make

    def __missing__(self, labels: Labels) -> T:
        made = self[labels] = self._make(labels)
        return made

    def of(self, *labels: str) -> T:
        return self[labels]


class SeriesMaker:
    """Makes the metrics of a registry."""

    def __init__(self, registry: CollectorRegistry, is_shared: bool, bounds_s: Sequence[float]):
        """With `is_shared` other processes write to the same page. `bounds_s` are the upper bounds of the buckets."""
        self._registry = registry
        self._is_shared = is_shared
        self._bounds_s = tuple(bounds_s)

    def counter(self, name: str, text: str, *labels: str) -> Series[Count]:
        if self._is_shared:
            return _of_library(Counter(name, text, labels, namespace=_NAMESPACE, registry=self._registry))
        return self._own(_Number, _counts, name, text, labels)

    def gauge(self, name: str, text: str, *labels: str) -> Series[Level]:
        if self._is_shared:
            gauge = Gauge(
                name, text, labels, multiprocess_mode="livesum", namespace=_NAMESPACE, registry=self._registry
            )
            return _of_library(gauge)
        return self._own(_Number, _levels, name, text, labels)

    def histogram(self, name: str, text: str, *labels: str) -> Series[Times]:
        if self._is_shared:
            histogram = Histogram(
                name, text, labels, buckets=self._bounds_s, namespace=_NAMESPACE, registry=self._registry
            )
            return _of_library(histogram)
        return self._own(lambda: _Histogram(self._bounds_s), _histograms, name, text, labels)

    def _own(self, make: Callable[[], Any], read: _Read, name: str, text: str, labels: Labels) -> Series[Any]:
        series = Series[Any](lambda _: make())
        if not labels:
            series.of()  # 0 from the start, as the library's
        self._registry.register(_Collector(lambda: read(f"{_NAMESPACE}_{name}", text, labels, list(series.items()))))
        return series


def _of_library(metric: Any) -> Series[Any]:
    return Series(lambda labels: metric.labels(*labels) if labels else metric)


class _Number:
    """A count or a level."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def inc(self, amount: float = 1, /) -> None:
        self.value += amount

    def dec(self, amount: float = 1, /) -> None:
        self.value -= amount


class _Histogram:
    """Seconds by buckets. The last bucket has no upper bound."""

    __slots__ = ("bounds_s", "counts", "sum_s")

    def __init__(self, bounds_s: Sequence[float]):
        self.bounds_s = bounds_s
        self.counts = [0] * (len(bounds_s) + 1)
        self.sum_s = 0.0

    def observe(self, seconds: float, /) -> None:
        self.counts[bisect.bisect_left(self.bounds_s, seconds)] += 1
        self.sum_s += seconds

    def buckets(self) -> list[tuple[str, float]]:
        """The upper bounds, and how many observations are up to each."""
        bounds = [*map(floatToGoString, self.bounds_s), "+Inf"]
        return list(zip(bounds, itertools.accumulate(self.counts), strict=True))


_Read = Callable[[str, str, Labels, list[tuple[Labels, Any]]], Metric]


def _counts(name: str, text: str, labels: Labels, series: list[tuple[Labels, _Number]]) -> Metric:
    family = CounterMetricFamily(name, text, labels=labels)
    for values, number in series:
        family.add_metric(values, number.value)
    return family


def _levels(name: str, text: str, labels: Labels, series: list[tuple[Labels, _Number]]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=labels)
    for values, number in series:
        family.add_metric(values, number.value)
    return family


def _histograms(name: str, text: str, labels: Labels, series: list[tuple[Labels, _Histogram]]) -> Metric:
    family = HistogramMetricFamily(name, text, labels=labels)
    for values, histogram in series:
        family.add_metric(values, histogram.buckets(), histogram.sum_s)
    return family


class _Collector:
    """What a registry asks for one metric."""

    def __init__(self, read: Callable[[], Metric]):
        self._read = read

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterable[Metric]:
        return (self._read(),)
