"""A worker that gets nowhere is replaced: the deadline alone, without a clock or a process."""

from __future__ import annotations

import asyncio

import pytest

from mlx_roster.errors import LoadCooldown, WorkerCrashed
from mlx_roster.registry import Registry, events
from mlx_roster.testing import FakeSources, FakeWorkers
from tests.registry.driver import Driver
from tests.registry.test_registry import ATLAS, Clock, registry, roster, run


def felt(d: Driver, model: str, awaited: float | None) -> list[str]:
    """What the shell says of a worker: since when it has been at one thing."""
    return d.feed(events.Progressed(d.at, d.serials[model], d.at, awaited))


def cuts(d: Driver) -> list[events.Cut]:
    return [action for action in d.actions if isinstance(action, events.Cut)]


def test_a_worker_that_gets_nowhere_is_replaced_and_the_next_request_loads_it_again() -> None:
    d = Driver(budget=10, stall_timeout=30.0)
    first = d.ready("atlas")
    felt(d, "atlas", d.at)
    assert d.elapse(29) == []
    assert d.elapse(1) == ["cut atlas"]
    (cut,) = cuts(d)
    assert cut.hangs
    assert isinstance(cut.error, WorkerCrashed)
    assert str(cut.error) == "the worker of atlas hung: it got nowhere for 30s, and is replaced"
    # Who comes meanwhile does not get the one that hangs, and waits for its end.
    late, said = d.ask("atlas")
    assert (said, d.why[late]) == ([], "it is being unloaded")
    assert d.leave(first) == []
    assert d.unloaded("atlas") == ["load atlas"]
    assert d.loaded("atlas") == [f"grant {late}"]


def test_one_that_gets_any_further_is_left_alone() -> None:
    d = Driver(budget=10, stall_timeout=30.0)
    d.ready("atlas")
    for _ in range(20):
        felt(d, "atlas", d.at)
        assert d.elapse(29) == []
    felt(d, "atlas", None)
    assert d.elapse(1000) == []  # a client that reads slowly: its worker has nothing to do


@pytest.mark.parametrize("pinned", [False, True])
def test_one_that_hangs_is_replaced_when_all_have_given_up_too(pinned: bool) -> None:
    d = Driver(budget=10, stall_timeout=30.0).set("atlas", pin=pinned)
    d.leave(d.ready("atlas"))
    felt(d, "atlas", d.at)
    assert d.elapse(30) == ["cut atlas"]
    assert d.unloaded("atlas") == []


def test_one_that_drains_is_not_waited_for_longer_than_others() -> None:
    d = Driver(budget=10, stall_timeout=30.0, drain_timeout=1000.0)
    first = d.ready("atlas")
    d.withdraw("atlas")
    felt(d, "atlas", d.at)
    assert d.elapse(30) == ["cut atlas"]
    assert isinstance(cuts(d)[0].error, WorkerCrashed)
    d.leave(first)
    d.unloaded("atlas")


def test_hanging_right_after_the_load_counts_as_a_crash_loop_does() -> None:
    d = Driver(budget=10, stall_timeout=100.0)
    for _ in range(2):
        ticket = d.ready("atlas")
        felt(d, "atlas", d.at)
        assert d.elapse(100) == ["cut atlas"]
        d.leave(ticket)
        d.unloaded("atlas")
    refused, said = d.ask("atlas")
    assert said == [f"refuse {refused}"]
    assert isinstance(d.errors[refused], LoadCooldown)
    assert d.elapse(10) == []
    _, said = d.ask("atlas")
    assert said == ["load atlas"]


def test_the_deadline_follows_the_roster() -> None:
    d = Driver(budget=10, stall_timeout=30.0)
    d.ready("atlas")
    felt(d, "atlas", d.at)
    d.elapse(20)
    d.policy = type(d.policy)(10, stall_timeout=300.0)
    d.configure()
    assert d.elapse(270) == []
    assert d.elapse(20) == ["cut atlas"]


def test_what_a_server_that_stood_still_has_not_heard_is_no_workers_fault() -> None:
    async def test() -> None:
        workers, clock = FakeWorkers(), Clock()
        async with registry(workers, clock=clock) as r, r.lease(ATLAS):
            workers.workers["atlas"].awaited = clock.at
            clock.at += 1000  # the timer should have rung long ago
            r.tick()
            assert r.stalled() == []
            assert "cut atlas" not in workers.history
            for _ in range(4):
                clock.at += 15
                r.tick()
            await workers.seen("kill atlas")

    run(test())


def test_neither_is_a_load_or_a_download_given_up_for_what_was_not_heard() -> None:
    async def test() -> None:
        workers, sources, clock = FakeWorkers(), FakeSources(), Clock()
        held = workers.hold("load atlas")
        sources.gates["scribe"] = asyncio.Event()
        async with Registry(roster(), workers, sources, 10, clock=clock) as r:
            load, search = (asyncio.ensure_future(r.load(name)) for name in ("atlas", "scribe"))
            await workers.seen("load atlas")
            clock.at += 1000  # more than the load_timeout
            r.tick()
            held.set()
            sources.gates["scribe"].set()
            assert [(await one).state for one in (load, search)] == ["ready", "ready"]

    run(test())
