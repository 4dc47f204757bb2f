"""What is read off the state for each scrape: one Overview, and what the workers count."""

from __future__ import annotations

from collections import Counter as Tally
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

from msgspec.structs import astuple
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

from mlx_roster.core import Counters
from mlx_roster.metrics.names import OTHER, Names
from mlx_roster.metrics.series import PREFIX
from mlx_roster.registry.overview import ModelStatus, Overview

#: The states in which a model holds bytes of the budget.
RESIDENT = ("loading", "ready", "draining", "unloading")

_Value = Callable[[ModelStatus], float | None]
_Count = Callable[[Counters], float | None]

#: By model, of the registry.
_STATUS: tuple[tuple[str, str, _Value], ...] = (
    ("model_bytes", "What a model's worker takes, as it measures it.", lambda model: model.bytes.measured),
    ("model_estimated_bytes", "What a model was expected to take.", lambda model: model.bytes.estimated),
    ("model_leases", "Requests that use a model.", lambda model: model.leases),
    ("model_queued", "Requests that wait for a model.", lambda model: model.queued),
)

#: By model, of its worker as it is.
_WORK: tuple[tuple[str, str, _Count], ...] = (
    ("num_requests_running", "Sequences that are being generated.", lambda one: one.running),
    ("num_requests_waiting", "Sequences that wait for a place beside them.", lambda one: one.waiting),
    ("kv_cache_bytes", "What the caches of running sequences take.", lambda one: one.kv),
    (
        "kv_cache_usage_perc",
        "What they take as a part of what is reserved for them: 1 is all of it, and it may be more.",
        lambda one: one.kv / one.reserved if one.reserved else None,
    ),
    ("prefix_cache_bytes", "What the prompt cache takes.", lambda one: one.prompts),
    ("lora_slots", "Adapters that a worker can hold at a time.", lambda one: one.slots or None),
    ("lora_slots_used", "Adapters that it holds.", lambda one: one.filled if one.slots else None),
)

#: By model, of all its workers since the server started.
_DONE: tuple[tuple[str, str, _Count], ...] = (
    ("engine_steps", "Steps that a model's workers have taken.", lambda one: one.steps),
    ("prefix_cache_queries", "Tokens of prompts that were looked up in the prompt cache.", lambda one: one.queried),
    ("prefix_cache_hits", "Tokens of prompts that were found there.", lambda one: one.hits),
    ("lora_loads", "Adapters that were put into a slot.", lambda one: one.placed),
    ("lora_evictions", "Adapters that had to make room for another.", lambda one: one.displaced),
)


class State:
    """Collects the gauges, and the counters that the workers keep."""

    def __init__(
        self,
        overview: Callable[[], Overview],
        counters: Callable[[], Mapping[str, Counters]],
        stalled: Callable[[], Collection[str]],
        names: Names,
    ) -> None:
        self._overview = overview
        self._counters = counters
        self._stalled = stalled
        self._names = names
        #: What has been counted of each model's workers, and what of that under each label: a model that gets series of
        #: its own, or loses them, takes nothing along. `rate()` would take what becomes less for a restart.
        self._seen: dict[str, Counters] = {}
        self._done: dict[str, Counters] = {}

    def remove(self, model: str) -> None:
        """The series of `model` are not wanted any more."""
        self._done.pop(model, None)

    def collect(self) -> Iterator[Metric]:
        overview = self._overview()
        yield from _whole(overview)
        yield _gauge("models_stalled", "Models whose worker gets nowhere.", len(self._stalled()))
        by_label: defaultdict[str, list[ModelStatus]] = defaultdict(list)
        for model in overview.models:
            if model.state in RESIDENT:
                self._names.loaded(model.id)
            by_label[self._names.model(model.id)].append(model)
        for name, text, value in _STATUS:
            yield _by_model(
                GaugeMetricFamily(PREFIX + name, text, labels=["model"]),
                {label: [value(model) for model in models] for label, models in by_label.items()},
            )
        yield from self._work()

    def _work(self) -> Iterator[Metric]:
        sums: dict[str, Counters] = {}
        for model, counters in self._counters().items():
            label = self._names.model(model)
            sums[label] = sums.get(label, Counters()) + counters
            before, now = self._seen.get(model, Counters()), counters.done
            self._seen[model] = now
            self._done[label] = self._done.get(label, Counters()) + _more(now, before)
        for name, text, count in _WORK:
            yield _by_model(
                GaugeMetricFamily(PREFIX + name, text, labels=["model"]),
                {label: [count(one)] for label, one in sums.items()},
            )
        for name, text, count in _DONE:
            yield _by_model(
                CounterMetricFamily(PREFIX + name, text, labels=["model"]),
                {label: [count(one)] for label, one in self._done.items()},
            )


def _more(now: Counters, before: Counters) -> Counters:
    """What has come to be between the two."""
    pairs = zip(astuple(now), astuple(before), strict=True)
    return Counters(*(max(0, later - earlier) for later, earlier in pairs))


def _whole(overview: Overview) -> Iterator[Metric]:
    """Of the server as a whole."""
    models, memory, reload = overview.models, overview.memory, overview.reload
    build = GaugeMetricFamily(f"{PREFIX}build_info", "Always 1: which version this is.", labels=["version"])
    build.add_metric([overview.version], 1)
    yield build
    yield _gauge("memory_budget_bytes", "What all models together may take.", memory.budget)
    yield _gauge("memory_held_bytes", "What nobody else can have now, in use or not.", memory.held)
    yield _gauge("memory_committed_bytes", "What is promised to those that stay.", memory.committed)
    yield _gauge("queued_requests", "Requests that wait for a model, or for a place in its batch.", overview.queued)
    yield _gauge("queued_requests_limit", "How many may, before the next is refused.", overview.max_queued)
    yield _gauge(
        "config_last_reload_success",
        "1 unless the last reload of the roster file failed.",
        int(reload is None or reload.ok),
    )
    downloads = sum(model.state == "locating" and model.progress is not None for model in models)
    yield _gauge("downloads", "Downloads that are going on.", downloads)
    cooling = sum(model.state == "cooldown" for model in models)
    yield _gauge("models_cooling_down", "Models that are left alone for a while after they failed.", cooling)
    states = Tally(model.state for model in models)
    residents = GaugeMetricFamily(f"{PREFIX}residents", "Models that hold memory, by state.", labels=["state"])
    for state in RESIDENT:
        residents.add_metric([state], states[state])
    yield residents


def _by_model(family: Metric, values: Mapping[str, Iterable[float | None]]) -> Metric:
    """`family` with a sample for each label: the sum of what there is. Of "other" only where that is something."""
    assert isinstance(family, GaugeMetricFamily | CounterMetricFamily)
    for label, several in values.items():
        known = [one for one in several if one is not None]
        if known and (label != OTHER or sum(known)):
            family.add_metric([label], sum(known))
    return family


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(PREFIX + name, text, value)
