"""However many names there are, the series are so many at most; and what the roster no longer has, has none."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from mlx_roster.core import Counters, Ref
from mlx_roster.metrics import Metrics
from mlx_roster.metrics.names import ADAPTERS, ALL_ADAPTERS, MODELS
from mlx_roster.registry import Registry
from mlx_roster.registry.overview import Change, Memory, Overview, Preloads, Reload
from mlx_roster.testing import FakeSources, FakeWorkers
from tests.metrics.scraped import READY, account, exposed
from tests.metrics.test_metrics import roster

NOTHING = Overview("0", 1.0, Memory(100, 20, 10), 3, Preloads(), None, ())

HOSTILE = ['a"b', "a\nb", "a\\", "{}", "# HELP x", "🙂" * 500, "", " ", "../../etc/passwd", "x" * 100_000, "other"]


def count(metrics: Metrics) -> int:
    return sum(len(family.samples) for family in exposed(metrics).values())


def values(metrics: Metrics, name: str, label: str) -> dict[str, float]:
    """The sums of a counter's samples by one label."""
    family = exposed(metrics)[name]
    place, found = 1 + family.labels.index(label), dict[str, float]()
    for key, value in family.samples.items():
        if key[0].endswith("_bucket"):
            continue
        found[key[place]] = found.get(key[place], 0) + value
    return found


def ask(metrics: Metrics, model: str | None, adapter: str | None, **fields: object) -> None:
    metrics.ended(account(model, adapter, **fields))


def test_five_thousand_adapters() -> None:
    metrics = Metrics(lambda: NOTHING, listed=lambda model, adapter: True)
    for number in range(5000):
        ask(metrics, "atlas", f"a{number}")
    found = values(metrics, "mlx_roster_requests_total", "adapter")
    assert len(found) == ADAPTERS + 1
    assert found["other"] == 5000 - ADAPTERS
    assert sum(found.values()) == 5000
    assert values(metrics, "mlx_roster_prompt_tokens_total", "adapter")["other"] == 30 * (5000 - ADAPTERS)
    before = count(metrics)
    for number in range(5000, 10_000):
        ask(metrics, "atlas", f"a{number}")
    assert count(metrics) == before


def test_a_thousand_models() -> None:
    models = tuple(replace(READY, id=f"m{number}") for number in range(1000))
    counters = {model.id: Counters(running=2) for model in models}
    metrics = Metrics(lambda: replace(NOTHING, models=models), lambda: counters, lambda model, adapter: True)
    for model in models:
        metrics.heard(Change("load", model.id, {"serial": 1}, None))
        metrics.heard(Change("loaded", model.id, {"serial": 1, "seconds": 1.0}, None))
        metrics.gaps(model.id, None)(0.1)
        for number in range(10):
            ask(metrics, model.id, f"a{number}")
    assert len(values(metrics, "mlx_roster_requests_total", "model")) == MODELS + 1
    adapters = exposed(metrics)["mlx_roster_requests_total"].samples
    assert len({key[1:3] for key in adapters}) <= MODELS * 2 + ALL_ADAPTERS + 1
    running = values(metrics, "mlx_roster_num_requests_running", "model")
    assert len(running) == MODELS + 1
    assert running["other"] == 2 * (1000 - MODELS)
    assert count(metrics) < 12_000


def test_what_nobody_has_listed_is_other() -> None:
    metrics = Metrics(lambda: NOTHING, listed=lambda model, adapter: (model, adapter) == ("atlas", None))
    for name in HOSTILE:
        ask(metrics, name, None)
        ask(metrics, "atlas", name, first=None)
        metrics.heard(Change("refuse", name, {"code": "model_too_large"}, None))
        metrics.heard(Change("failed", name, {"why": "no"}, None))
        metrics.gaps(name, name)(0.1)
    ask(metrics, None, None, status=404, code="model_not_found")
    ask(metrics, None, None, operation=None)
    assert values(metrics, "mlx_roster_requests_total", "model") == {
        "other": len(HOSTILE) + 1,
        "atlas": len(HOSTILE),
        "": 1,
    }
    assert set(values(metrics, "mlx_roster_requests_total", "adapter")) == {"", "other"}
    for family in exposed(metrics).values():
        if "model" in family.labels:
            assert set(values(metrics, family.name, "model")) <= {"other", "atlas", ""}


def test_a_name_from_the_roster_is_escaped_whatever_it_is() -> None:
    metrics = Metrics(lambda: NOTHING, listed=lambda model, adapter: True)
    for name in HOSTILE:
        ask(metrics, name, None)
    assert set(values(metrics, "mlx_roster_requests_total", "model")) == set(HOSTILE)


def test_an_adapter_that_answers_has_a_name() -> None:
    metrics = Metrics(lambda: NOTHING, listed=lambda model, adapter: adapter is None)
    ask(metrics, "atlas", "folder/pirate")
    ask(metrics, "atlas", "folder/none", first=None)
    assert values(metrics, "mlx_roster_requests_total", "adapter") == {"folder/pirate": 1, "other": 1}


def test_what_a_reload_takes_out_has_no_series_once_it_is_gone() -> None:
    async def main() -> None:
        workers = FakeWorkers()
        async with Registry(roster(adapters={"x": "/x", "y": "/y"}), workers, FakeSources(), 10) as registry:
            metrics = Metrics(registry.overview, registry.counters, registry.lists, registry.stalled)
            registry.listen(metrics.heard)
            gone = asyncio.Event()
            registry.listen(lambda change: gone.set() if (change.kind, change.model) == ("gone", "a") else None)
            for model in ("a", "b"):
                async with registry.lease(Ref(model)):
                    ask(metrics, model, "x")
                    ask(metrics, model, "y")
            async with registry.lease(Ref("a")):
                smaller = roster(adapters={"y": "/y"})
                smaller = smaller.model_copy(update={"models": {"b": smaller.models["b"]}})
                registry.reconfigure(smaller, 10)
                registry.reload_ended(Reload(0.0, ok=True))
                assert values(metrics, "mlx_roster_requests_total", "model") == {"a": 2, "b": 1}
                assert values(metrics, "mlx_roster_prompt_tokens_total", "adapter") == {"x": 30, "y": 60}
            await gone.wait()
            for family in exposed(metrics).values():
                if "model" in family.labels:
                    assert "a" not in values(metrics, family.name, "model"), family.name
            assert values(metrics, "mlx_roster_requests_total", "adapter") == {"y": 1}
            registry.reconfigure(roster(), 10)
            async with registry.lease(Ref("a")):
                assert values(metrics, "mlx_roster_loads_total", "model")["a"] == 1

    asyncio.run(main())


def test_what_workers_count_never_becomes_less_whoever_has_series_of_its_own() -> None:
    models = {f"m{number}": Counters(steps=100) for number in range(MODELS + 2)}
    listed = set(models)
    metrics = Metrics(lambda: NOTHING, lambda: models, lambda model, adapter: model in listed)

    def steps() -> dict[str, float]:
        found = values(metrics, "mlx_roster_engine_steps_total", "model")
        return {name: found.get(name, 0) for name in ("m0", "m50", "other")}

    def reload(*, without: str | None = None) -> None:
        listed.update(models)
        listed.discard(without or "")
        metrics.heard(Change("reload", None, {"ok": True}, None))

    assert steps() == {"m0": 100, "m50": 0, "other": 200}
    reload(without="m0")
    # Its place is free again, which another takes: from here on, and with nothing that was counted elsewhere before.
    assert steps() == {"m0": 0, "m50": 0, "other": 200}
    models["m50"] += Counters(steps=7)
    assert steps() == {"m0": 0, "m50": 7, "other": 200}
    # It comes back, as one of the others by now.
    reload()
    models["m0"] += Counters(steps=3)
    assert steps() == {"m0": 0, "m50": 7, "other": 203}
