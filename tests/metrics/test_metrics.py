"""What a scrape says after things have happened: to values by hand, and to a registry over fake workers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from mlx_roster.config import Roster
from mlx_roster.core import Ref
from mlx_roster.errors import LoadFailed, ModelTooLarge, RosterError
from mlx_roster.metrics import Metrics
from mlx_roster.registry import Registry
from mlx_roster.registry.overview import Change, Memory, ModelBytes, ModelStatus, Overview, Preloads, Reload
from mlx_roster.testing import FakeSources, FakeWorkers
from tests.registry.test_registry import Clock, settled

NOTHING = Overview("0", 1.0, Memory(100, 20, 10), 3, Preloads(), None, (), 512)
IDLE = ModelStatus("a", "ready", False, 0, 0, ModelBytes(5, 7), None, None, 0, 1.0, None, ())


def samples(metrics: Metrics) -> dict[tuple[str, ...], float]:
    """Every sample: its name without the prefix and its labels' values."""
    body, media_type = metrics.render("text/plain")
    assert media_type.startswith("text/plain")
    return {
        (sample.name.removeprefix("mlx_roster_"), *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def labels(metrics: Metrics, name: str) -> set[str]:
    """The values of the first label of `name`."""
    return {key[1] for key in samples(metrics) if key[0] == name}


def test_a_server_that_has_done_nothing() -> None:
    found = samples(Metrics(lambda: NOTHING))
    ours = {key: value for key, value in found.items() if not key[0].startswith(("process_", "python_"))}
    assert ours == {
        ("build_info", "0"): 1,
        ("downloads",): 0,
        ("event_loop_tasks",): 0,
        ("http_connections",): 0,
        ("models_cooling_down",): 0,
        ("models_stalled",): 0,
        ("memory_budget_bytes",): 100,
        ("memory_held_bytes",): 20,
        ("memory_committed_bytes",): 10,
        ("queued_requests",): 3,
        ("queued_requests_limit",): 512,
        ("config_last_reload_success",): 1,
        ("config_reloads_total", "ok"): 0,
        ("config_reloads_total", "failed"): 0,
        **{("residents", state): 0 for state in ("loading", "ready", "draining", "unloading")},
    }


def test_models_are_named_once_they_have_been_resident() -> None:
    models = (replace(IDLE, leases=2), replace(IDLE, id="b", state="locating", queued=4, bytes=ModelBytes()))
    overview = replace(NOTHING, models=models)
    metrics = Metrics(lambda: overview)
    assert labels(metrics, "model_leases") == labels(metrics, "model_bytes") == {"a"}
    assert labels(metrics, "model_queued") == {"a", "other"}
    metrics.heard(Change("failed", "made-up", {"why": "no"}, None))
    assert samples(metrics)["loads_total", "other", "failed"] == 1
    overview = replace(NOTHING, models=tuple(replace(model, state="unloaded") for model in models))
    assert samples(metrics)["model_leases", "a"] == 2
    metrics.heard(Change("load", "b", {"serial": 1}, None))
    assert samples(metrics)["model_queued", "b"] == 4


@pytest.mark.parametrize("ok", [True, False])
def test_reloads(ok: bool) -> None:
    overview = replace(NOTHING, reload=Reload(1.0, ok=ok))
    metrics = Metrics(lambda: overview)
    metrics.heard(Change("reload", None, {"ok": ok}, None))
    found = samples(metrics)
    assert found["config_last_reload_success",] == ok
    assert (found["config_reloads_total", "ok"], found["config_reloads_total", "failed"]) == (ok, not ok)


def test_a_scraper_that_asks_for_openmetrics_gets_it() -> None:
    body, media_type = Metrics(lambda: NOTHING).render("application/openmetrics-text; version=1.0.0")
    assert media_type.startswith("application/openmetrics-text")
    assert body.endswith(b"# EOF\n")


class World:
    """A registry of models a, b and c over fake workers, one byte each, and its metrics."""

    def __init__(self, registry: Registry, workers: FakeWorkers) -> None:
        self.registry = registry
        self.workers = workers
        self.metrics = Metrics(registry.overview, registry.counters, registry.lists, registry.stalled)
        registry.listen(self.metrics.heard)

    async def use(self, model: str, keep_alive: float | None = None) -> None:
        async with self.registry.lease(Ref(model), keep_alive):
            pass

    async def evicted(self, model: str, reason: str) -> None:
        """Wait until a model is gone, and see why it is said to be."""
        await self.workers.seen(f"stop {model}")
        found = {key[1:]: value for key, value in samples(self.metrics).items() if key[0] == "evictions_total"}
        assert found == {(model, reason): 1}


@asynccontextmanager
async def world(budget: int = 10, sizes: dict[str, int] | None = None, **entry: Any) -> AsyncIterator[World]:
    workers = FakeWorkers()
    async with Registry(roster(**entry), workers, FakeSources(sizes), budget) as registry:
        yield World(registry, workers)
        registry.validate()


def roster(**entry: Any) -> Roster:
    return Roster.model_validate({"models": {name: {"source": f"/fake/{name}", **entry} for name in ("a", "b", "c")}})


async def makes_room(world: World) -> None:
    await world.use("a")
    await world.use("b")


async def has_been_idle(world: World) -> None:
    await world.use("a")


async def is_not_to_be_kept(world: World) -> None:
    await world.use("a", keep_alive=0)


async def is_unloaded_by_an_operator(world: World) -> None:
    await world.use("a")
    world.registry.unload("a")


async def is_unloaded_by_an_operator_while_in_use(world: World) -> None:
    async with world.registry.lease(Ref("a")):
        world.registry.unload("a")


async def is_cut_by_an_operator(world: World) -> None:
    async with world.registry.lease(Ref("a")):
        world.registry.unload("a", force=True)
        await world.workers.seen("stop a")


async def is_described_anew(world: World) -> None:
    await world.use("a")
    world.registry.reconfigure(roster(max_adapters=3), 1)


@pytest.mark.parametrize(
    ("happens", "reason"),
    [
        (makes_room, "room"),
        (has_been_idle, "idle"),
        (is_not_to_be_kept, "keep_alive"),
        (is_unloaded_by_an_operator, "operator"),
        (is_unloaded_by_an_operator_while_in_use, "operator"),
        (is_cut_by_an_operator, "operator"),
        (is_described_anew, "config"),
    ],
)
def test_why_a_model_went(happens: Callable[[World], Awaitable[None]], reason: str) -> None:
    async def main() -> None:
        async with world(budget=1, ttl=0.001 if happens is has_been_idle else "never") as here:
            await happens(here)
            await here.evicted("a", reason)

    asyncio.run(main())


def test_loads_refusals_and_waits() -> None:
    async def main() -> None:
        async with world(sizes={"c": 11}) as here:
            here.workers.failures["b"] = [LoadFailed("b has no weights")]
            errors: list[type[RosterError]] = []
            for model in ("a", "a", "b", "c"):
                try:
                    await here.use(model)
                except RosterError as error:
                    errors.append(type(error))
            assert errors == [LoadFailed, ModelTooLarge]
            here.workers.workers["a"].die()
            found = samples(here.metrics)
            loads = {key[1:]: value for key, value in found.items() if key[0] == "loads_total"}
            assert loads == {("a", "ok"): 1, ("b", "failed"): 1}
            refusals = {key[1:]: value for key, value in found.items() if key[0] == "refusals_total"}
            assert refusals == {("load_failed", "b"): 1, ("model_too_large", "c"): 1}
            assert found["evictions_total", "a", "crash"] == found["worker_crashes_total", "a", "crash"] == 1
            assert found["request_queue_time_seconds_count", "a"] == 2
            assert found["load_duration_seconds_count", "a"] == 1
            await here.use("a")
            found = samples(here.metrics)
            assert found["worker_restarts_total", "a"] == 1
            assert found["loads_total", "a", "ok"] == 2

    asyncio.run(main())


@pytest.mark.parametrize("stage", ["download", "load"])
def test_what_gets_no_further_has_failed_and_what_nobody_wants_any_more_has_not(stage: str) -> None:
    async def main() -> None:
        workers, sources, clock = FakeWorkers(), FakeSources(), Clock()
        if stage == "download":
            sources.gates["a"] = asyncio.Event()
        else:
            workers.hold("load a")
        async with Registry(roster(), workers, sources, 10, clock=clock) as registry:
            metrics = Metrics(registry.overview, registry.counters, registry.lists, registry.stalled)
            registry.listen(metrics.heard)
            load = asyncio.ensure_future(registry.load("a"))
            await settled()
            for _ in range(300):
                # In one leap it would seem that this process had stood still itself.
                clock.at += 1
                registry.tick()
            with pytest.raises(LoadFailed, match="did not get any further for 5m"):
                await load
            given_up = asyncio.ensure_future(registry.load("a"))
            await settled()
            given_up.cancel()
            await asyncio.wait([given_up])
            found = {key[1:]: value for key, value in samples(metrics).items() if key[0] == "loads_total"}
            # Of a download that nobody waits for any more, no load has come.
            assert found == {("a", "failed"): 1} | ({("a", "cancelled"): 1} if stage == "load" else {})

    asyncio.run(main())


def test_only_requests_wait_in_the_queue() -> None:
    async def main() -> None:
        heard: list[Change] = []
        async with world(preload=True) as here:
            here.registry.listen(heard.append)
            async with here.registry.changes() as changes:
                here.registry.start_preloads()
                granted = 0
                while granted < 3:
                    change = await anext(aiter(changes))
                    granted += isinstance(change, Change) and change.kind == "grant"
            await here.registry.load("a")
            assert [change.fields["exempt"] for change in heard if change.kind == "grant"] == [True] * 4
            assert not labels(here.metrics, "request_queue_time_seconds_count")
            await here.use("a")
            assert "exempt" not in heard[-1].fields
            assert samples(here.metrics)["request_queue_time_seconds_count", "a"] == 1

    asyncio.run(main())
