"""The shell as operators and the roster use it: over fake workers, on a real event loop."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from pathlib import Path

import pytest

from mlx_roster.config import ModelEntry, Roster
from mlx_roster.config.load import parse
from mlx_roster.core import Generation, Located, Ref, Text
from mlx_roster.errors import AdapterNotFound, Draining, LoadFailed, ModelNotFound, QueueTimeout
from mlx_roster.registry import Registry
from mlx_roster.registry.journal import FAR_BEHIND
from mlx_roster.registry.overview import Change, Overview, Preloads, Reload
from mlx_roster.testing import FakeSources, FakeWorkers
from tests.registry.test_registry import Clock, listed, run, say, say_once, settled

ATLAS, SCRIBE = Ref("atlas"), Ref("scribe")


def roster(text: str = "") -> Roster:
    return parse(text or "models: {atlas: {source: ./atlas}, scribe: {source: ./scribe}}", name="r", base=Path("/fake"))


def registry(text: str = "", *, budget: int = 10, sources: FakeSources | None = None, **extra: object) -> Registry:
    workers = extra.pop("workers", None) or FakeWorkers()
    assert isinstance(workers, FakeWorkers)
    return Registry(roster(text), workers, sources or FakeSources(), budget, **extra)  # type: ignore[arg-type]


def test_time_is_noticed_without_anybody_asking() -> None:
    async def test() -> None:
        workers = FakeWorkers()
        async with registry("models: {atlas: {source: ./atlas, ttl: 10ms}}", workers=workers) as r:
            await say_once(r, ATLAS)
            await workers.seen("stop atlas")
            await settled()
            assert "no residents" in repr(r)

    run(test())


def test_keep_alive_zero_unloads_when_the_lease_ends() -> None:
    async def test() -> None:
        workers = FakeWorkers()
        async with registry(workers=workers) as r:
            async with r.lease(ATLAS, keep_alive=0.0) as lease:
                assert await say(lease) == "Hello there!"
                assert "stop atlas" not in workers.history
            assert (await r.gone("atlas")).state == "unloaded"
            assert workers.history[-1] == "stop atlas"

    run(test())


def test_who_waits_too_long_is_told_why_and_when_to_come_back() -> None:
    async def test() -> None:
        text = "scheduling: {queue_timeout: 10ms}\nmodels: {atlas: {source: ./atlas}, scribe: {source: ./scribe}}"
        sources = FakeSources(sizes={"atlas": 10, "scribe": 10})
        async with registry(text, sources=sources, workers=FakeWorkers(sizes={"atlas": 10})) as r, r.lease(ATLAS):
            with pytest.raises(QueueTimeout, match=r"in the way: atlas \(ready, 1 running\)") as raised:
                await say_once(r, SCRIBE)
            assert raised.value.retry_after >= 1

    run(test())


def test_unloading_drains_by_default_and_cuts_with_force() -> None:
    async def test() -> None:
        workers = FakeWorkers()
        gate = workers.hold("token atlas")
        async with registry(workers=workers) as r:
            async with r.lease(ATLAS) as lease:
                stream = lease.submit(Generation(Text("hi"), max_tokens=10))[0]
                assert r.unload("atlas").state == "draining"
                await settled()
                assert "stop atlas" not in workers.history
                assert r.unload("atlas", force=True).state == "draining"
                with pytest.raises(Draining, match="atlas was unloaded by an operator"):
                    await anext(aiter(stream))
            await r.gone("atlas")
            gate.set()
            assert await say_once(r, ATLAS) == "Hello there!"
            assert workers.history.count("load atlas") == 2
            r.validate()

    run(test())


def test_a_pin_keeps_a_model_and_names_are_aliases_too() -> None:
    async def test() -> None:
        text = "models: {atlas: {source: ./atlas, aliases: [gpt-4o], ttl: 0}, scribe: {source: ./scribe}}"
        async with registry(text) as r:
            assert (await r.load("gpt-4o")).id == "atlas"
            await r.gone("atlas")
            r.pin("gpt-4o", True)
            assert (await r.load("atlas")).state == "ready"
            assert listed(r, "atlas").pinned
            with pytest.raises(ModelNotFound):
                r.pin("nobody", True)

    run(test())


def test_monitoring_does_not_reset_ttl() -> None:
    async def test() -> None:
        workers, clock = FakeWorkers(), Clock()
        async with registry("models: {atlas: {source: ./atlas, ttl: 10s}}", workers=workers, clock=clock) as r:
            await say_once(r, ATLAS)
            for second in range(9):
                clock.at += 1
                r.tick()
                r.listing(), listed(r, "atlas"), r.status(), r.progress()
                assert r.overview().models == (r.model_status("atlas"),)
                assert r.model_status("atlas").expires_in == 9 - second
            clock.at += 1
            r.tick()
            await workers.seen("stop atlas")

    run(test())


# A changed roster


def test_a_changed_roster_keeps_what_is_unchanged_and_drains_what_is_not() -> None:
    async def test() -> None:
        workers = FakeWorkers()
        async with registry(workers=workers) as r:
            async with r.lease(ATLAS) as atlas, r.lease(SCRIBE) as scribe:
                changed = r.reconfigure(
                    roster("models: {atlas: {source: ./atlas}, scribe: {source: ./other}, poet: {source: ./poet}}"), 10
                )
                assert (changed.added, changed.changed, changed.removed) == (("poet",), ("scribe",), ())
                assert await say(scribe) == "Hello there!"
                assert await say(atlas) == "Hello there!"
                assert await say_once(r, SCRIBE) == "Hello there!"
                assert workers.workers["scribe"].source.path == "/fake/scribe"
            assert workers.history.count("load scribe") == 2
            assert workers.history.count("load atlas") == 1
            assert await say_once(r, Ref("poet")) == "Hello there!"
            r.validate()

    run(test())


def test_caches_of_other_bits_take_another_load() -> None:
    async def test() -> None:
        workers = FakeWorkers()
        async with registry(workers=workers) as r:
            assert await say_once(r, ATLAS) == "Hello there!"
            found = []
            for bits in (8, 4, 4):
                r.reconfigure(
                    roster(f"models: {{atlas: {{source: ./atlas, kv: {{bits: {bits}, group_size: 32}}}}}}"), 10
                )
                await say_once(r, ATLAS)
                source = workers.workers["atlas"].source
                found.append((source.kv_bits, source.kv_group_size))
            assert found == [(8, 32), (4, 32), (4, 32)]
            assert workers.history.count("load atlas") == 3

    run(test())


def test_a_budget_below_what_is_in_use_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        async with registry(workers=FakeWorkers(sizes={"atlas": 6})) as r, r.lease(ATLAS):
            r.reconfigure(r.roster, 4)
            assert listed(r, "atlas").state == "ready"

    run(test())
    assert "models in use take 6 B, more than the budget of 4 B: nothing is loaded beside them" in caplog.messages


def test_reload_that_removes_a_busy_model_lets_its_streams_end() -> None:
    async def test() -> None:
        workers = FakeWorkers()
        async with registry(workers=workers) as r:
            async with r.lease(SCRIBE) as scribe:
                r.reconfigure(roster("models: {atlas: {source: ./atlas}}"), 10)
                with pytest.raises(ModelNotFound):
                    r.resolve("scribe")
                with pytest.raises(ModelNotFound):
                    await say_once(r, SCRIBE)
                assert await say(scribe) == "Hello there!"
            await workers.seen("stop scribe")

    run(test())


def test_limits_of_a_running_worker_follow_the_roster() -> None:
    async def test() -> None:
        workers = FakeWorkers()
        sources = FakeSources(banks={"atlas": 0})
        async with registry(workers=workers, sources=sources) as r, r.lease(ATLAS):
            sources.banks["atlas"] = 2
            r.reconfigure(
                roster(
                    "models: {atlas: {source: ./atlas, max_concurrency: 3, adapters: {pirate: ./pirate}}, "
                    "scribe: {source: ./scribe}}"
                ),
                10,
            )
            await workers.seen("limit atlas")
            limits = workers.workers["atlas"].limits
            assert (limits.max_concurrency, limits.bank) == (3, 2)
            assert workers.history == ["load atlas", "limit atlas"]
            async with r.lease(Ref("atlas", "pirate")) as pirate:
                await say(pirate)
            assert workers.history[-1] == "submit atlas with atlas:pirate"

    run(test())


def test_a_worker_that_was_loading_when_the_limits_changed_is_told_afterwards() -> None:
    async def test() -> None:
        workers = FakeWorkers()
        gate = workers.hold("load atlas")
        async with registry(workers=workers) as r:
            waiting = asyncio.create_task(say_once(r, ATLAS))
            await workers.seen("load atlas")
            r.reconfigure(roster("models: {atlas: {source: ./atlas, max_context: 77}}"), 10)
            gate.set()
            await waiting
            await workers.seen("limit atlas")
            assert workers.workers["atlas"].limits.max_context == 77

    run(test())


def test_an_adapter_that_is_removed_while_its_request_waits_is_not_found() -> None:
    async def test() -> None:
        workers = FakeWorkers()
        gate = workers.hold("load atlas")
        async with registry("models: {atlas: {source: ./atlas, adapters: {a: ./a}}}", workers=workers) as r:
            waiting = asyncio.create_task(say_once(r, Ref("atlas", "a")))
            await workers.seen("load atlas")
            r.reconfigure(roster("models: {atlas: {source: ./atlas}}"), 10)
            gate.set()
            with pytest.raises(AdapterNotFound):
                await waiting
            assert listed(r, "atlas").in_flight == 0

    run(test())


def test_what_was_found_for_an_entry_that_is_no_more_is_not_loaded() -> None:
    class Paths(FakeSources):
        async def locate(self, name: str, entry: ModelEntry) -> Located:
            found = await super().locate(name, entry)
            return replace(found, path=str(entry.source))

    async def test() -> None:
        workers, sources = FakeWorkers(), Paths()
        async with registry(workers=workers, sources=sources) as r:
            async with r.lease(ATLAS):
                sources.gates["atlas"] = asyncio.Event()
                adapted = "models: {atlas: {source: ./atlas, adapters: {a: ./a}}, scribe: {source: ./scribe}}"
                r.reconfigure(roster(adapted), 10)  # has its files looked at again, slowly
                await settled()
                assert sources.downloads
                r.reconfigure(roster("models: {atlas: {source: ./other}, scribe: {source: ./scribe}}"), 10)
                waiting = asyncio.create_task(say_once(r, ATLAS))
                await settled()
                assert sources.located.count("atlas") == 3  # the second of which nobody needs any more
                sources.gates["atlas"].set()
                await waiting
            assert workers.workers["atlas"].source.path == "/fake/other"

    run(test())


def test_closing_ends_a_look_at_changed_files_and_what_comes_after_it_is_not_acted_upon() -> None:
    async def test() -> None:
        workers, sources = FakeWorkers(), FakeSources()
        r = registry(workers=workers, sources=sources)
        async with r:
            leased = r.lease(ATLAS, keep_alive=0.0)
            await leased.__aenter__()
            sources.gates["atlas"] = asyncio.Event()
            r.reconfigure(roster("models: {atlas: {source: ./atlas, max_context: 9}}"), 10)
            await settled()
            assert sources.downloads
        assert not sources.downloads
        await leased.__aexit__(None, None, None)
        await settled()
        assert workers.history.count("stop atlas") == 1

    run(test())


def test_a_listener_that_fails_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def fail(change: Change) -> None:
        raise ZeroDivisionError(change.kind)

    async def test() -> None:
        async with registry() as r:
            r.listen(fail)
            assert await say_once(r, ATLAS) == "Hello there!"
            r.unload("atlas")
            assert (await r.gone("atlas")).state == "unloaded"

    run(test())
    assert "a listener failed" in caplog.messages


# Searching


def test_a_search_ends_with_the_last_who_waits_and_is_made_once_for_all() -> None:
    async def test() -> None:
        sources = FakeSources()
        sources.gates["atlas"] = asyncio.Event()
        async with registry(sources=sources) as r:
            tasks = [asyncio.create_task(say_once(r, ATLAS)) for _ in range(3)]
            await settled()
            assert sources.located == ["atlas"]
            assert r.model_status("atlas").state == "locating"
            assert r.model_status("atlas").progress == (0, 1)
            assert await say_once(r, SCRIBE) == "Hello there!"
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            await settled()
            assert (sources.downloads, r.model_status("atlas").state) == ({}, "unloaded")
            r.validate()

    run(test())


def test_a_download_that_stands_still_is_ended() -> None:
    async def test() -> None:
        sources, clock = FakeSources(), Clock()
        sources.gates["atlas"] = asyncio.Event()
        async with registry(sources=sources, clock=clock) as r:
            task = asyncio.create_task(say_once(r, ATLAS))
            await settled()

            def pass_by(seconds: int) -> None:
                for _ in range(seconds):
                    clock.at += 1
                    r.tick()

            for done in range(1, 5):
                sources.downloads["atlas"] = (done, 9)
                pass_by(250)
                await settled()
                assert not task.done()
            pass_by(50)  # it was in the second after that that there was more
            await settled()
            assert not task.done()
            pass_by(1)
            with pytest.raises(LoadFailed, match="did not get any further for 5m"):
                await task

    run(test())


def test_a_download_is_looked_at_while_nothing_else_is_due() -> None:
    async def test() -> None:
        sources = FakeSources()
        sources.gates["atlas"] = asyncio.Event()
        async with registry("scheduling: {load_timeout: 1s}\nmodels: {atlas: {source: ./atlas}}", sources=sources) as r:
            with pytest.raises(LoadFailed, match="did not get any further for 1s"):
                await say_once(r, ATLAS)

    run(test())


def test_closing_in_the_middle_of_everything() -> None:
    async def test() -> None:
        workers, sources = FakeWorkers(sizes={"atlas": 6}), FakeSources(sizes={"atlas": 6, "scribe": 6})
        text = "models: {atlas: {source: ./atlas}, scribe: {source: ./scribe}, poet: {source: ./poet}}"
        r = registry(text, workers=workers, sources=sources)
        sources.gates["poet"] = asyncio.Event()
        async with r:
            leased = r.lease(ATLAS)
            await leased.__aenter__()
            r.unload("atlas")  # drains
            waits = [asyncio.create_task(say_once(r, ref)) for ref in (SCRIBE, Ref("poet"), ATLAS)]
            gone = asyncio.create_task(r.gone("atlas"))
            await settled()
            assert "atlas DRAINING 1 leases, scribe LOADING (waits for room) | 3 queued" in repr(r)
        for task in waits:
            with pytest.raises(Draining):
                await task
        with pytest.raises(Draining):
            await gone
        await leased.__aexit__(None, None, None)
        assert workers.history == ["load atlas", "stop atlas"]

    run(test())


# At the start


def test_preloads_are_loaded_in_order_and_a_failure_is_named() -> None:
    async def test() -> None:
        workers = FakeWorkers()
        workers.failures["b"] = [LoadFailed("b is broken")]
        text = "models:\n" + "\n".join(f"  {name}: {{source: ./{name}, preload: true}}" for name in "cab")
        async with registry(text + "\n  d: {source: ./d}", workers=workers) as r:
            r.start_preloads()
            assert r.preloads == Preloads(3)
            gate = workers.hold("load a")
            await workers.seen("load a")
            assert r.preloads == Preloads(3, done=1)
            gate.set()
            while not r.preloads.finished:  # noqa: ASYNC110  nothing says when
                await asyncio.sleep(0)
            assert r.preloads == Preloads(3, done=2, failed=("b",))
            assert workers.history == ["load c", "load a", "load b"]

    run(test())


# Explained


def test_every_decision_is_a_line_with_its_reason_and_the_bytes_behind_it(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        workers = FakeWorkers(sizes={"atlas": 6, "scribe": 7})
        sources = FakeSources(sizes={"atlas": 6, "scribe": 7})
        async with registry(workers=workers, sources=sources) as r:
            async with r.lease(ATLAS):
                waiting = asyncio.create_task(say_once(r, SCRIBE))
                await settled()
            await waiting

    with caplog.at_level(logging.INFO, "mlx_roster.registry.journal"):
        run(test())
    lines = [line for line in caplog.messages if "scribe" in line or line.startswith("evict")]
    assert lines[:4] == [
        'queue model=scribe ticket=2 why="its files are looked for" queued=1',
        "located model=scribe job=2 bytes=7 kv=0 bank=0",
        'queue model=scribe ticket=2 why="in the way: atlas (ready, 1 running)" queued=1',
        'evict model=atlas serial=1 why="evicted for scribe, which needs 7 B" bytes=6 held=6 committed=7 budget=10',
    ]
    assert any(line.startswith("load model=scribe serial=2 reserved=7 bytes=7") for line in lines)
    assert any(line.startswith("loaded model=scribe serial=2 seconds=") for line in lines)


def test_changes_begin_with_everything_and_go_on_with_what_happens() -> None:
    async def test() -> None:
        async with registry() as r, r.changes() as changes:
            items = aiter(changes)
            first = await anext(items)
            assert isinstance(first, Overview)
            assert first.models == ()
            await say_once(r, ATLAS)
            kinds = []
            while not kinds or kinds[-1] != "grant":
                change = await anext(items)
                assert isinstance(change, Change)
                kinds.append(change.kind)
            assert kinds == ["queue", "locate", "located", "load", "loaded", "grant"]
            assert change.status is not None
            assert (change.status.id, change.status.state, change.status.leases) == ("atlas", "ready", 0)

    run(test())


def test_who_reads_changes_too_slowly_is_given_everything_anew() -> None:
    async def test() -> None:
        async with registry() as r, r.changes() as changes:
            items = aiter(changes)
            await anext(items)
            for _ in range(FAR_BEHIND + 1):
                r.pin("atlas", True)
            assert isinstance(await anext(items), Overview)
            r.pin("atlas", False)
            change = await anext(items)
            assert isinstance(change, Change)
            assert change.fields == {"pinned": False}

    run(test())


def test_the_overview_says_how_the_last_reload_went_and_what_became_of_models() -> None:
    async def test() -> None:
        clock = Clock()
        heard: list[Change] = []
        async with registry(clock=clock) as r:
            r.listen(heard.append)
            await r.load("atlas")
            r.reload_ended(Reload(0.0, ok=False, error="r:1: models: should not be empty"))
            clock.at += 5
            overview = r.overview()
            assert overview.reload is not None
            assert (overview.reload.seconds_ago, overview.reload.ok) == (5.0, False)
            (atlas,) = overview.models
            assert (atlas.id, atlas.state, atlas.expires_in) == ("atlas", "ready", 895.0)
            assert [event.what for event in atlas.events] == [
                "asked for: its files are looked for",
                "admitted with 1 B",
                "load started",
                "ready: loaded in 0.00 s, 1 B measured",
            ]
            assert heard[-1].kind == "reload"
            assert all(change.status is None for change in heard)

    run(test())
