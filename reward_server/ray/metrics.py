"""Hands the metrics of a replica to Ray, which shows them on its page with the replica's name.

Owns the translation from Prometheus' samples to Ray's counters and gauges. Knows nothing of what they count.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.samples import Sample
from ray.serve.metrics import Counter, Gauge

_PERIOD_S = 5.0
_PREFIX = "reward_server_"  # the registry also describes the process, which Ray does itself


class RayMetrics:
    """Ray's copies of the series of a registry."""

    def __init__(self, registry: CollectorRegistry):
        self._registry = registry
        self._counters: dict[str, Counter] = {}
        self._gauges: dict[str, Gauge] = {}
        self._seen: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}

    async def keep_fresh(self) -> None:
        """Hands the numbers over every few seconds, until it is cancelled."""
        while True:
            self.hand_over()
            await asyncio.sleep(_PERIOD_S)

    def hand_over(self) -> None:
        """Hands the numbers over as they are now."""
        for metric in self._registry.collect():
            if metric.name.startswith(_PREFIX):
                self._hand_over(metric, metric.samples)

    def _hand_over(self, metric: Metric, samples: Iterable[Sample]) -> None:
        for sample in samples:
            if metric.type == "gauge":
                self._gauge(metric, sample).set(sample.value, tags=sample.labels)
            else:
                self._count(metric, sample)

    def _count(self, metric: Metric, sample: Sample) -> None:
        """A histogram is counters as well: of its buckets, its count and its sum."""
        series = (sample.name, tuple(sorted(sample.labels.items())))
        added = sample.value - self._seen.get(series, 0.0)
        if added > 0:
            self._counter(metric, sample).inc(added, tags=sample.labels)
            self._seen[series] = sample.value

    def _gauge(self, metric: Metric, sample: Sample) -> Gauge:
        if sample.name not in self._gauges:
            self._gauges[sample.name] = Gauge(sample.name, metric.documentation, tuple(sample.labels))
        return self._gauges[sample.name]

    def _counter(self, metric: Metric, sample: Sample) -> Counter:
        name = sample.name.removesuffix("_total")
        if name not in self._counters:
            self._counters[name] = Counter(name, metric.documentation, tuple(sample.labels))
        return self._counters[name]
