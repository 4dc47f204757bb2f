"""What Prometheus is told: counted as it happens, and read off the state when asked. docs/metrics.md has all of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric

from mlx_roster.core import Counters
from mlx_roster.metrics.account import Account
from mlx_roster.metrics.gauges import RESIDENT, State
from mlx_roster.metrics.names import Names
from mlx_roster.metrics.processes import OwnProcess, Tasks
from mlx_roster.metrics.requests import Requests
from mlx_roster.metrics.residence import Residence
from mlx_roster.metrics.series import gauge
from mlx_roster.registry.overview import Change, Overview

#: What OpenMetrics ends with, once for all that is said.
_END = b"# EOF\n"


class Metrics:
    """One server's metrics, in a collector registry of their own. All of it is called on the event loop.

    `overview` and `counters` are the registry's; `listed` says whether the roster has a model or, of a model, an
    adapter, and `stalled` which models' workers get nowhere.
    """

    def __init__(
        self,
        overview: Callable[[], Overview],
        counters: Callable[[], Mapping[str, Counters]] = dict,
        listed: Callable[[str, str | None], bool] = lambda model, adapter: False,
        stalled: Callable[[], Collection[str]] = tuple,
    ) -> None:
        self._overview = overview
        self._names = Names(listed)
        self._collectors = CollectorRegistry()
        self._state = State(overview, counters, stalled, self._names)
        self._collectors.register(self._state)
        self._requests = Requests(self._collectors, self._names)
        self._residence = Residence(self._collectors, self._names)
        self._connections = gauge(self._collectors, "http_connections", "Connections of clients that are open.")
        self._collectors.register(Tasks())
        self._collectors.register(OwnProcess())
        GCCollector(self._collectors)
        PlatformCollector(self._collectors)
        #: Models with series that the roster did not have when it was last read.
        self._unlisted: set[str] = set()

    def heard(self, change: Change) -> None:
        """Count one change, of which every one is told."""
        if change.kind == "load" and change.model is not None:
            self._names.loaded(change.model)
        self._residence.heard(change)
        if change.kind == "reload" and change.fields["ok"]:
            self._unlisted, adapters = self._names.unlisted()
            for model, adapter in adapters:
                self._names.forget(model, adapter)
                self._requests.remove(model=model, adapter=adapter)

    def ended(self, account: Account) -> None:
        """Count one request, at its end."""
        self._requests.ended(account)

    def connected(self) -> None:
        """Count one connection of a client."""
        self._connections.inc()

    def disconnected(self) -> None:
        """There is one less."""
        self._connections.dec()

    def gaps(self, model: str, adapter: str | None) -> Callable[[float], None]:
        """What is to be told of each time between two tokens of a request, in seconds. Asked for once a request."""
        del adapter  # a histogram is some twenty series
        return self._requests.gaps(model)

    def render(self, accept: str) -> tuple[bytes, str]:
        """All of it in a format that the Accept header `accept` asks for, and that format's media type."""
        encode, media_type = choose_encoder(accept)
        self._forget()
        return encode(self._collectors), media_type

    async def rendered(self, accept: str) -> tuple[bytes, str]:
        """The same, one metric at a time: in between the event loop turns."""
        encode, media_type = choose_encoder(accept)
        self._forget()
        parts = []
        for metric in self._collectors.collect():
            parts.append(encode(_One(metric)).removesuffix(_END))
            await asyncio.sleep(0)
        if media_type.startswith("application/openmetrics-text"):
            parts.append(_END)
        return b"".join(parts), media_type

    def _forget(self) -> None:
        """What a reload has taken out of the roster has no series, once it is gone."""
        if not self._unlisted:
            return
        gone = self._unlisted - {model.id for model in self._overview().models if model.state in RESIDENT}
        for model in gone:
            self._names.forget(model)
            self._requests.remove(model=model)
            self._residence.remove(model)
            self._state.remove(model)
        self._unlisted -= gone


class _One:
    """A collector of one metric, collected already."""

    def __init__(self, metric: Metric) -> None:
        self._metric = metric

    def collect(self) -> Iterable[Metric]:
        return iter((self._metric,))
