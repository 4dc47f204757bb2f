"""How our metrics are made: by prometheus-client, with one prefix, and the buckets of those they are named after."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics

PREFIX = "mlx_roster_"

# vLLM's, in seconds.
FIRST_TOKEN = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    *(20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
EACH_TOKEN = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5),
    *(5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
REQUEST = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)

#: Nobody's: what a load takes, in seconds.
LOAD = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0)

# Since when each series counts would be as many series again.
disable_created_metrics()  # type: ignore[no-untyped-call]


def counter(registry: CollectorRegistry, name: str, text: str, *labels: str) -> Counter:
    return Counter(PREFIX + name, text, labels, registry=registry)


def gauge(registry: CollectorRegistry, name: str, text: str) -> Gauge:
    return Gauge(PREFIX + name, text, registry=registry)


def histogram(registry: CollectorRegistry, name: str, text: str, buckets: Sequence[float], *labels: str) -> Histogram:
    return Histogram(PREFIX + name, text, labels, buckets=buckets, registry=registry)
