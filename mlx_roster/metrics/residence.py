"""What is counted of the registry's changes."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from mlx_roster.metrics.names import Names
from mlx_roster.metrics.series import LOAD, REQUEST, counter, histogram
from mlx_roster.registry.overview import Change

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


class Residence:
    """Loads, evictions, refusals, crashes, waits and reloads."""

    def __init__(self, registry: CollectorRegistry, names: Names) -> None:
        self._names = names
        self._loads = counter(registry, "loads", "Loads that have ended, by how.", "model", "result")
        self._evictions = counter(registry, "evictions", "Models that were unloaded, by why.", "model", "reason")
        self._refusals = counter(
            registry, "refusals", "Requests that were refused a model, by error code.", "model", "code"
        )
        self._crashes = counter(
            registry, "worker_crashes", "Workers that were lost while they served, by how.", "model", "reason"
        )
        self._restarts = counter(registry, "worker_restarts", "Loads that made up for a lost worker.", "model")
        self._reloads = counter(registry, "config_reloads", "Reloads of the roster file, by how they ended.", "result")
        self._loading = histogram(registry, "load_duration_seconds", "How long loads took.", LOAD, "model")
        self._waits = histogram(
            registry,
            "request_queue_time_seconds",
            "How long requests waited for their model, loads included.",
            REQUEST,
            "model",
        )
        for result in ("ok", "failed"):
            self._reloads.labels(result)
        #: Why those are to go that still drain, by serial: once drained, they only say that they have.
        self._leaving: dict[int, str] = {}
        #: Models whose worker was lost, and that have not been loaded since.
        self._lost: set[str] = set()

    def heard(self, change: Change) -> None:
        """Count one. Called on the event loop for every one."""
        fields, model = change.fields, self._names.model(change.model)
        match change.kind:
            case "grant" if not fields.get("exempt", False):  # a preload or an operator's load is no request
                self._waits.labels(model).observe(fields["waited"])
            case "refuse":
                self._refusals.labels(model, fields["code"]).inc()
            case "load":
                # What has never been seen at 0 has not increased.
                for reason in ("crash", "hang"):
                    self._crashes.labels(model, reason)
                self._restarts.labels(model)
            case "loaded" | "failed" | "cancel":
                # One that got no further was given up, and has failed as much as one that says so itself.
                self._loads.labels(model, "failed" if fields.get("stalled") else _ENDS[change.kind]).inc()
                if change.kind == "loaded":
                    self._loaded(model, fields["seconds"])
            case "drain":
                self._leaving[fields["serial"]] = _reason(fields["why"])
            case "evict" | "unload" | "cut" | "died":
                self._left(change, model)
            case "reload":
                self._reloads.labels("ok" if fields["ok"] else "failed").inc()

    def remove(self, model: str) -> None:
        """The series of `model` are not wanted any more."""
        self._lost.discard(model)
        by_model = (self._loads, self._evictions, self._refusals, self._crashes, self._restarts)
        for metric in (*by_model, self._loading, self._waits):
            metric.remove_by_labels({"model": model})

    def _loaded(self, model: str, seconds: float) -> None:
        self._loading.labels(model).observe(seconds)
        if model in self._lost:
            self._lost.discard(model)
            self._restarts.labels(model).inc()

    def _left(self, change: Change, model: str) -> None:
        fields = change.fields
        before = self._leaving.pop(fields["serial"], None)
        lost = "crash" if change.kind == "died" else "hang" if fields.get("hangs") else None
        self._evictions.labels(model, lost or before or _reason(fields["why"])).inc()
        if lost is not None:
            self._crashes.labels(model, lost).inc()
            self._lost.add(model)


def _reason(why: str) -> str:
    return next((reason for words, reason in _REASONS.items() if why.startswith(words)), "other")
