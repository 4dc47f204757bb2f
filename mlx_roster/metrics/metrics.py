"""What Prometheus is told: counted from the registry's changes as they happen, and read off its state when asked.

Labels are few: a model has series of its own once it has been resident, so that names which clients make up have none.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import GaugeMetricFamily, Metric

from mlx_roster.registry.overview import Change, ModelStatus, Overview

#: Seconds. A wait that outlives the last of these has met the queue's deadline, unless the roster says otherwise.
_WAITS = (0.001, 0.01, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)

#: The states in which a model holds bytes of the budget.
RESIDENT = ("loading", "ready", "draining", "unloading")

_ENDS = {"loaded": "ok", "failed": "failed", "cancel": "cancelled"}

#: How the registry's words for why a model goes begin, and what they come to: sentences make poor labels.
_REASONS = {
    "evicted": "room",
    "idle": "idle",
    "it is not to be kept": "keep_alive",
    "unloaded by an operator": "operator",
    "its entry has changed": "config",
    "it is no longer in the roster": "config",
}


class Metrics:
    """One server's metrics, in a collector registry of their own."""

    def __init__(self, overview: Callable[[], Overview]) -> None:
        self._collectors = CollectorRegistry()
        self._state = _State(overview)
        self._collectors.register(self._state)
        self._loads = self._counter("loads", "Loads that have ended, by how.", "model", "result")
        self._evictions = self._counter("evictions", "Models that were unloaded, by why.", "model", "reason")
        self._refusals = self._counter("refusals", "Requests that were refused a model, by error code.", "code")
        self._reloads = self._counter("config_reloads", "Reloads of the roster file, by how they ended.", "result")
        self._waits = Histogram(
            "mlx_roster_queue_wait_seconds",
            "How long requests waited for their model, loads included.",
            buckets=_WAITS,
            registry=self._collectors,
        )
        for result in ("ok", "failed"):
            self._reloads.labels(result)
        #: Why those are to go that still drain, by serial: once drained, they only say that they have.
        self._leaving: dict[int, str] = {}

    def heard(self, change: Change) -> None:
        """Count one change. Called on the event loop for every one."""
        fields, model = change.fields, change.model or ""
        match change.kind:
            case "grant" if not fields.get("exempt", False):  # a preload or an operator's load is no request
                self._waits.observe(fields["waited"])
            case "refuse":
                self._refusals.labels(fields["code"]).inc()
            case "load":
                self._state.known.add(model)
            case "loaded" | "failed" | "cancel":
                self._loads.labels(self._label(model), _ENDS[change.kind]).inc()
            case "drain":
                self._leaving[fields["serial"]] = _reason(fields["why"])
            case "evict" | "unload" | "cut" | "died":
                before = self._leaving.pop(fields["serial"], None)
                reason = "crash" if change.kind == "died" else before or _reason(fields["why"])
                self._evictions.labels(self._label(model), reason).inc()
            case "reload":
                self._reloads.labels("ok" if fields["ok"] else "failed").inc()

    def _label(self, model: str) -> str:
        return model if model in self._state.known else "other"

    def render(self, accept: str) -> tuple[bytes, str]:
        """All of it in a format that the Accept header `accept` asks for, and that format's media type."""
        encode, media_type = choose_encoder(accept)
        return encode(self._collectors), media_type

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"mlx_roster_{name}", text, labels, registry=self._collectors)


class _State:
    """Gauges, read off one Overview for each scrape."""

    def __init__(self, overview: Callable[[], Overview]) -> None:
        self._overview = overview
        #: The models that have series of their own.
        self.known: set[str] = set()

    def collect(self) -> Iterator[Metric]:
        overview = self._overview()
        models = overview.models
        self.known.update(model.id for model in models if model.state in RESIDENT)
        memory, reload = overview.memory, overview.reload
        yield _gauge("memory_budget_bytes", "What all models together may take.", memory.budget)
        yield _gauge(
            "memory_held_bytes",
            "What nobody else can have now, in use or not.",
            memory.held,
        )
        yield _gauge("memory_committed_bytes", "What is promised to those that stay.", memory.committed)
        yield _gauge("queued_requests", "Requests that wait for a model.", overview.queued)
        yield _gauge(
            "config_last_reload_success",
            "1 unless the last reload of the roster file failed.",
            int(reload is None or reload.ok),
        )
        states = Tally(model.state for model in models)
        residents = _family("residents", "Models that hold memory, by state.", "state")
        for state in RESIDENT:
            residents.add_metric([state], states[state])
        yield residents
        yield from self._by_model(models)

    def _by_model(self, models: tuple[ModelStatus, ...]) -> Iterator[Metric]:
        size = _family("model_bytes", "What a model's worker takes, as it measures it.", "model")
        leases = _family("model_leases", "Requests that use a model.", "model")
        queued = _family("model_queued", "Requests that wait for a model.", "model")
        for model in models:
            if model.id in self.known:
                leases.add_metric([model.id], model.leases)
                queued.add_metric([model.id], model.queued)
                if model.bytes.measured is not None:
                    size.add_metric([model.id], model.bytes.measured)
        yield from (size, leases, queued)


def _family(name: str, text: str, label: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"mlx_roster_{name}", text, labels=[label])


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"mlx_roster_{name}", text, value)


def _reason(why: str) -> str:
    return next((reason for words, reason in _REASONS.items() if why.startswith(words)), "other")
