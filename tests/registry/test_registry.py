"""The asyncio shell over fake workers: leases as requests see them."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from mlx_roster.config import ModelEntry, Roster
from mlx_roster.config.load import parse
from mlx_roster.core import Generation, Located, Ref, Text
from mlx_roster.errors import Draining, LoadCooldown, LoadFailed, LoadOutOfMemory, ModelTooLarge, WorkerCrashed
from mlx_roster.registry import Lease, Registry
from mlx_roster.registry.listing import Listing
from mlx_roster.testing import FakeSources, FakeWorkers

ATLAS, PIRATE, SCRIBE = Ref("atlas"), Ref("atlas", "pirate"), Ref("scribe")
HELLO = Generation(Text("hi"), max_tokens=10)

ROSTER = """
models:
  atlas: {source: ./atlas, adapters: {pirate: ./pirate}}
  scribe: {source: ./scribe, prompt_cache: {entries: 0, budget: 1MiB}}
"""


def roster() -> Roster:
    return parse(ROSTER, name="roster.yaml", base=Path("/fake"))


@asynccontextmanager
async def registry(
    workers: FakeWorkers,
    *,
    budget: int = 10,
    sizes: dict[str, int] | None = None,
    banks: dict[str, int] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> AsyncIterator[Registry]:
    """A registry that is checked when the test is done with it."""
    async with Registry(roster(), workers, FakeSources(sizes, banks), budget, clock=clock) as registry:
        yield registry
        registry.validate()
    assert not workers.wrongs, workers.wrongs


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(test)


async def say(lease: Lease) -> str:
    return "".join([delta.text async for delta in lease.submit(HELLO)[0]])


async def say_once(registry: Registry, ref: Ref) -> str:
    async with registry.lease(ref) as lease:
        return await say(lease)


def listed(registry: Registry, name: str) -> Listing:
    return registry.listed(registry.resolve(name))


class Clock:
    """Stands still until it is put forward."""

    def __init__(self) -> None:
        self.at = 1000.0

    def __call__(self) -> float:
        return self.at


async def settled() -> None:
    """Let everything that can run now run."""
    for _ in range(10):
        await asyncio.sleep(0)


def test_a_lease_loads_the_model_and_a_second_finds_it_resident() -> None:
    async def test() -> None:
        workers = FakeWorkers()
        async with registry(workers) as r:
            async with r.lease(ATLAS) as lease:
                assert await say(lease) == "Hello there!"
            async with r.lease(ATLAS) as lease:
                assert lease.load_ms == 0
            assert workers.history == ["load atlas", "submit atlas"]

    run(test())


def test_a_worker_is_told_the_limits_of_its_model() -> None:
    async def test() -> None:
        workers = FakeWorkers()
        async with registry(workers) as r:
            for ref, kept in ((ATLAS, (32, 512 * 2**20)), (SCRIBE, (0, 2**20))):
                async with r.lease(ref):
                    limits = workers.workers[ref.model].source.limits
                    assert (limits.prompt_cache_entries, limits.prompt_cache_bytes) == kept

    run(test())


def test_a_lease_on_an_adapter_submits_through_it() -> None:
    async def test() -> None:
        workers = FakeWorkers()
        async with registry(workers) as r, r.lease(PIRATE) as lease:
            await say(lease)
            assert workers.history == ["load atlas", "submit atlas with atlas:pirate"]

    run(test())


def test_ten_concurrent_cold_requests_make_one_load_through_the_shell() -> None:
    async def test() -> None:
        workers = FakeWorkers()
        async with registry(workers) as r:

            async def one() -> str:
                async with r.lease(ATLAS) as lease:
                    return await say(lease)

            assert await asyncio.gather(*(one() for _ in range(10))) == ["Hello there!"] * 10
            assert workers.history.count("load atlas") == 1

    run(test())


def test_models_that_do_not_fit_together_take_turns() -> None:
    async def test() -> None:
        workers = FakeWorkers(sizes={"atlas": 6, "scribe": 6})
        async with registry(workers, sizes={"atlas": 6, "scribe": 6}) as r:
            for ref in [ATLAS, SCRIBE] * 3:
                async with r.lease(ref) as lease:
                    await say(lease)
            loads = [line for line in workers.history if line.startswith(("load", "stop"))]
            swap, back = ["stop atlas", "load scribe"], ["stop scribe", "load atlas"]
            assert loads == ["load atlas", *swap, *back, *swap, *back, *swap]

    run(test())


def test_models_that_fit_together_only_without_their_adapters_take_turns() -> None:
    async def test() -> None:
        workers = FakeWorkers(sizes={"atlas": 4, "scribe": 4})
        async with registry(workers, sizes={"atlas": 7, "scribe": 4}, banks={"atlas": 3}) as r:
            async with r.lease(PIRATE):
                assert workers.workers["atlas"].source.limits.bank == 3
                assert (listed(r, "atlas").estimated, listed(r, "atlas").measured) == (7, 4)
                other = asyncio.create_task(say_once(r, SCRIBE))
                await settled()
                assert listed(r, "scribe").queued == 1
                workers.workers["atlas"].report(7, bank=3)
                await settled()
                assert (listed(r, "atlas").measured, listed(r, "scribe").queued) == (7, 1)
            assert await other == "Hello there!"
            assert workers.history[1:3] == ["stop atlas", "load scribe"]
            # What it took is remembered: no more than that is left for it now.
            async with r.lease(ATLAS):
                assert workers.history[-2:] == ["stop scribe", "load atlas"]

    run(test())


def test_a_bank_that_is_full_takes_no_more_room() -> None:
    async def test() -> None:
        workers = FakeWorkers(sizes={"atlas": 4, "scribe": 3})
        async with registry(workers, sizes={"atlas": 8, "scribe": 3}, banks={"atlas": 4}) as r, r.lease(PIRATE):
            other = asyncio.create_task(say_once(r, SCRIBE))
            await settled()
            assert listed(r, "scribe").queued == 1
            # Its files may hold less than their headers say.
            workers.workers["atlas"].report(7, bank=4)
            assert await other == "Hello there!"

    run(test())


def test_exception_in_stream_releases_lease() -> None:
    async def test() -> None:
        async with registry(FakeWorkers()) as r:
            with pytest.raises(ZeroDivisionError):
                async with r.lease(ATLAS):
                    raise ZeroDivisionError
            assert listed(r, "atlas").in_flight == 0

    run(test())


def test_a_cancelled_wait_gives_up_its_place_and_its_load() -> None:
    async def test() -> None:
        workers = FakeWorkers()
        gate = workers.hold("load atlas")
        async with registry(workers) as r:

            async def wait() -> None:
                async with r.lease(ATLAS):
                    raise AssertionError("nobody opened the gate")

            task = asyncio.create_task(wait())
            await workers.seen("load atlas")
            task.cancel()
            await workers.seen("cancel load atlas")
            gate.set()
            with pytest.raises(asyncio.CancelledError):
                await task
            await settled()
            assert "no residents" in repr(r)

    run(test())


def test_a_wait_that_is_cancelled_as_it_is_granted_leaves_no_lease() -> None:
    async def test() -> None:
        workers = FakeWorkers()
        gate = workers.hold("load atlas")
        async with registry(workers) as r:
            entered = []

            async def wait() -> None:
                async with r.lease(ATLAS):
                    entered.append(True)

            task = asyncio.create_task(wait())
            await workers.seen("load atlas")
            gate.set()
            while listed(r, "atlas").in_flight == 0:  # noqa: ASYNC110  to stop in the very turn in which it is granted
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert not entered
            assert listed(r, "atlas").in_flight == 0

    run(test())


def test_load_errors_reach_every_waiter_and_the_next_request_tries_again() -> None:
    async def test() -> None:
        workers, clock = FakeWorkers(), Clock()
        workers.failures["atlas"] = [LoadFailed("atlas is broken")]
        async with registry(workers, clock=clock) as r:

            async def one() -> str:
                try:
                    async with r.lease(ATLAS) as lease:
                        return await say(lease)
                except (LoadFailed, LoadCooldown) as error:
                    return error.message

            assert await asyncio.gather(one(), one()) == ["atlas is broken"] * 2
            assert await one() == "atlas is not loaded for another 10 s: atlas is broken"
            clock.at += 10
            assert await one() == "Hello there!"

    run(test())


def test_a_load_cancelled_before_its_first_step_still_gives_its_room_back() -> None:
    async def test() -> None:
        workers = FakeWorkers(sizes={"atlas": 9, "scribe": 9})
        async with registry(workers, sizes={"atlas": 9, "scribe": 9}) as r:
            gate = workers.hold("stop atlas")
            async with r.lease(ATLAS):
                pass
            waiter = asyncio.create_task(r.lease(SCRIBE).__aenter__())
            await workers.seen("stop atlas")
            gate.set()
            while "LOADING (waits" in repr(r):  # noqa: ASYNC110  to act in the very turn in which the load is started
                await asyncio.sleep(0)
            waiter.cancel()  # its load has been started as a task, which has not had a turn yet
            with pytest.raises(asyncio.CancelledError):
                await waiter
            async with asyncio.timeout(5), r.lease(ATLAS) as lease:
                assert await say(lease) == "Hello there!"

    run(test())


def test_an_operator_may_load_what_is_cooling_down() -> None:
    async def test() -> None:
        workers = FakeWorkers()
        workers.failures["atlas"] = [LoadFailed("atlas is broken")]
        async with registry(workers) as r:
            with pytest.raises(LoadFailed):
                await r.load("atlas")
            assert (r.model_status("atlas").state, r.model_status("atlas").failures) == ("cooldown", 1)
            assert (await r.load("atlas")).state == "ready"
            assert await say_once(r, ATLAS) == "Hello there!"

    run(test())


def test_a_request_that_finds_the_registry_closed_after_locating_is_refused() -> None:
    class Slow(FakeSources):
        gate = asyncio.Event()

        async def locate(self, name: str, entry: ModelEntry) -> Located:
            await self.gate.wait()
            return await super().locate(name, entry)

    async def test() -> None:
        workers, sources = FakeWorkers(), Slow()
        async with Registry(roster(), workers, sources, 10) as r:
            waiter = asyncio.create_task(r.lease(ATLAS).__aenter__())
            await settled()
        sources.gate.set()
        with pytest.raises(Draining):
            await waiter
        assert workers.history == []

    run(test())


def test_out_of_memory_evicts_the_idle_and_tries_once_more() -> None:
    async def test() -> None:
        workers = FakeWorkers()
        workers.failures["scribe"] = [LoadOutOfMemory("out of memory")]
        async with registry(workers) as r:
            async with r.lease(ATLAS):
                pass
            async with r.lease(SCRIBE) as lease:
                assert await say(lease) == "Hello there!"
            assert workers.history == ["load atlas", "load scribe", "stop atlas", "load scribe", "submit scribe"]

    run(test())


def test_too_large_is_refused_at_once() -> None:
    async def test() -> None:
        workers = FakeWorkers()
        async with registry(workers, sizes={"scribe": 11}) as r:
            with pytest.raises(ModelTooLarge):
                async with r.lease(SCRIBE):
                    pass
            assert workers.history == []

    run(test())


def test_worker_dies_mid_stream_and_the_next_request_after_a_crash_reloads() -> None:
    async def test() -> None:
        workers = FakeWorkers()
        gate = workers.hold("token atlas")
        async with registry(workers) as r:
            async with r.lease(ATLAS) as lease:
                stream = lease.submit(HELLO)[0]
                workers.workers["atlas"].die()
                with pytest.raises(WorkerCrashed):
                    await anext(aiter(stream))
            gate.set()
            async with r.lease(ATLAS) as lease:
                assert await say(lease) == "Hello there!"
            assert workers.history.count("load atlas") == 2

    run(test())


def test_an_unforeseen_failure_of_a_load_still_reaches_those_who_wait() -> None:
    class Broken(FakeWorkers):
        async def load(self, *_: Any) -> Any:
            raise ZeroDivisionError("a bug")

    async def test() -> None:
        async with registry(Broken()) as r:
            with pytest.raises(LoadFailed, match="atlas could not be loaded"):
                async with r.lease(ATLAS):
                    pass

    run(test())


def test_closing_ends_waits_and_loads_and_stops_workers() -> None:
    async def test() -> None:
        workers = FakeWorkers()
        workers.hold("load scribe")
        async with Registry(roster(), workers, FakeSources(), 10) as r:
            async with r.lease(ATLAS):
                pass

            async def wait() -> None:
                async with r.lease(SCRIBE):
                    raise AssertionError("nobody opened the gate")

            waiter = asyncio.create_task(wait())
            await workers.seen("load scribe")
        with pytest.raises(Draining):
            await waiter
        with pytest.raises(Draining):
            async with r.lease(ATLAS):
                pass
        assert workers.history == ["load atlas", "load scribe", "cancel load scribe", "stop atlas"]

    run(test())


def test_a_registry_that_is_dropped_open_warns() -> None:
    async def test() -> None:
        kept = [Registry(roster(), FakeWorkers(), FakeSources(), 10)]
        await kept[0].__aenter__()

        def drop() -> None:
            kept.clear()  # not before somebody listens: the collector may run by itself
            gc.collect()

        with pytest.warns(ResourceWarning, match="dropped without being closed"):
            drop()

    run(test())


def test_listing_shows_every_model_and_adapter_loaded_or_not() -> None:
    async def test() -> None:
        async with registry(FakeWorkers(), sizes={"atlas": 4}) as r, r.lease(PIRATE):
            atlas, pirate, scribe = r.listing()
            assert (atlas.id, atlas.state, atlas.estimated, atlas.measured, atlas.in_flight) == (
                "atlas",
                "ready",
                4,
                1,
                1,
            )
            assert (pirate.id, pirate.parent) == ("atlas:pirate", "atlas")
            assert (scribe.id, scribe.state, scribe.estimated) == ("scribe", "unloaded", None)

    run(test())
