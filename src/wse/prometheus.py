"""The metrics of a server for Prometheus, with the library prometheus-client (`pip install "wse[prometheus]"`)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from wse.core.ports.http import HttpCall, HttpReply
from wse.metrics.families import Buckets, Family

try:
    from prometheus_client import CollectorRegistry
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
    from prometheus_client.exposition import choose_encoder
    from prometheus_client.registry import Collector as _Collector
except ImportError as exc:  # pragma: no cover - the environment of the tests has prometheus-client
    raise ImportError('metrics need the library prometheus-client: pip install "wse[prometheus]"') from exc

if TYPE_CHECKING:
    from wse.server.server import WseServer


class Collector(_Collector):
    """The metrics of a server, for a registry of prometheus-client: `REGISTRY.register(Collector(server))`.

    From then on the server measures; before, and without a collector, metrics cost nothing. The registry may be read on
    any thread.

    Args:
        server: The server.
    """

    def __init__(self, server: WseServer) -> None:
        self._read = server._metrics.read

    def collect(self) -> Iterator[Metric]:
        """Read all metrics."""
        return map(to_metric, self._read())

    def describe(self) -> Iterable[Metric]:
        """Return nothing: the names are not checked against those of other collectors before they are read."""
        return ()


class MetricsRoute:
    """Answers requests for metrics; a `wse.core.ports.http.Route`.

    Args:
        read: Reads the metrics.
    """

    methods = ("GET",)
    max_body = 0

    def __init__(self, read: Callable[[], list[Family]]) -> None:
        self._read = read
        # One thread of its own, so that a flood of requests takes none from the application.
        self._writer = ThreadPoolExecutor(1, "wse-metrics")

    async def answer(self, call: HttpCall) -> HttpReply:
        """The metrics, in the format that the request asks for. They are read here, and written on another thread."""
        accept = call.headers.get("Accept") or ""
        loop = asyncio.get_running_loop()
        media_type, text = await loop.run_in_executor(self._writer, exposition, self._read(), accept)
        return HttpReply(body=text, headers={"Content-Type": media_type, "Cache-Control": "no-store"})


class _Families(_Collector):
    def __init__(self, families: Iterable[Family]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        return map(to_metric, self._families)


def exposition(families: Iterable[Family], accept: str) -> tuple[str, bytes]:
    """The text that Prometheus reads.

    Args:
        families: The metrics.
        accept: The `Accept` header of the request, which decides the format.

    Returns:
        The media type, and the text.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Families(families))
    encode, media_type = choose_encoder(accept)
    return media_type, encode(registry)


def to_metric(family: Family) -> Metric:
    """A metric as prometheus-client has it."""
    if family.kind == "histogram":
        histogram = HistogramMetricFamily(family.name, family.help, labels=family.labels)
        for labels, buckets in family.histograms.items():
            histogram.add_metric(labels, _cumulative(buckets), buckets.total)
        return histogram
    make = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
    metric = make(family.name, family.help, labels=family.labels)
    for labels, value in family.values.items():
        metric.add_metric(labels, value)
    return metric


def _cumulative(buckets: Buckets) -> list[tuple[str, float]]:
    found: list[tuple[str, float]] = []
    count = 0
    for bound, more in zip((*map(str, buckets.bounds), "+Inf"), buckets.counts, strict=True):
        count += more
        found.append((bound, count))
    return found
