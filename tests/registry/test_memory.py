"""Bytes: what is estimated, measured, shared and given back. No clock, no tasks. More of it in test_state."""

from __future__ import annotations

from mlx_roster.registry import events
from tests.registry.driver import Driver


def test_a_prompt_cache_makes_room_for_a_load_before_anybody_is_evicted() -> None:
    d = Driver(budget=10)
    d.ready("atlas", 4)
    d.reported("atlas", 8, spare=4)
    assert d.ask("scribe", 5)[1] == []  # admitted: atlas needs 4
    assert "scribe LOADING (waits for room)" in repr(d)
    assert d.shares["atlas"] == 5
    assert d.reported("atlas", 5, spare=1) == ["load scribe"]


def test_shares_are_what_a_model_has_and_what_nobody_else_has() -> None:
    d = Driver(budget=100)
    d.ready("atlas", 40)
    assert d.shares["atlas"] == 100
    d.ask("scribe", 30)
    assert d.shares["atlas"] == 70
    d.loaded("scribe", 30)
    assert (d.shares["atlas"], d.shares["scribe"]) == (70, 60)
    # One grows into what is free: the other may no longer have it.
    d.reported("atlas", 60)
    assert (d.shares["atlas"], d.shares["scribe"]) == (70, 40)


def test_a_worker_that_grows_past_its_share_leaves_less_for_others() -> None:
    d = Driver(budget=10)
    d.ready("atlas", 4)
    d.reported("atlas", 7)
    assert d.ask("scribe", 4)[1] == []
    d.reported("atlas", 6)
    assert "scribe LOADING" in repr(d)


def test_an_admitted_load_goes_back_to_the_queue_when_its_room_is_taken() -> None:
    d = Driver(budget=10)
    d.ready("atlas", 4)
    d.idle("poet", 4)
    waiter, said = d.ask("scribe", 6)
    assert said == ["unload poet"]
    assert d.reported("atlas", 7) == []
    assert repr(d) == "<Residency 11 B of 10 B | atlas READY 1 leases, poet UNLOADING | 1 queued>"
    assert d.unloaded("poet") == []
    assert d.reported("atlas", 4) == ["load scribe"]
    assert d.loaded("scribe", 6) == [f"grant {waiter}"]


def test_a_smaller_budget_makes_the_idle_give_way_and_leaves_the_busy() -> None:
    d = Driver(budget=10)
    d.ready("atlas", 4)
    d.idle("scribe", 5)
    assert d.configure(budget=6) == ["unload scribe"]
    assert d.configure(budget=2) == []
    assert d.ask("atlas")[1] == ["grant 3"]


def test_a_larger_budget_lets_in_who_waits() -> None:
    d = Driver(budget=10)
    d.ready("atlas", 8)
    d.ask("scribe", 4)
    assert d.configure(budget=12) == ["load scribe"]


def test_n_load_unload_cycles_return_to_baseline() -> None:
    d = Driver(budget=10)
    for _ in range(50):
        d.idle("atlas", 7)
        d.withdraw("atlas")
        d.unloaded("atlas")
    assert repr(d) == "<Residency 0 B of 10 B | no residents | 0 queued>"
    assert d.state.board.ledger.committed == 0
    assert not d.state.board.holders


def test_what_an_admitted_load_waits_for_is_not_taken_by_those_admitted_later() -> None:
    d = Driver(budget=10)
    first, second = d.ready("a", 4), d.ready("b", 4)
    d.withdraw("a")
    d.withdraw("b")
    large, said = d.ask("large", 8)
    assert said == []
    d.leave(first)
    assert d.unloaded("a") == []
    small, said = d.ask("small", 1)
    assert said == []  # there is room for it now, but large needs that
    d.leave(second)
    assert d.unloaded("b") == ["load large", "load small"]
    assert d.loaded("large", 8) == [f"grant {large}"]
    assert d.loaded("small", 1) == [f"grant {small}"]


def test_a_load_that_goes_back_to_the_queue_keeps_its_age() -> None:
    d = Driver(budget=10, max_wait=20.0, queue_timeout=60.0, min_residency=100.0)
    d.ready("hot", 4)
    d.elapse(100)
    d.ready("fresh", 4)
    waiter, _ = d.ask("cold", 5)
    assert d.elapse(20) == ["drain hot"]
    for _ in range(3):
        d.reported("fresh", 7)  # cold no longer fits beside it, which may not be closed yet
        assert "cold" not in repr(d)
        d.reported("fresh", 4)
        assert "cold LOADING (waits for room)" in repr(d)
    assert d.elapse(34) == [f"refuse {waiter}"]


def test_a_retry_after_running_out_of_memory_has_its_time_and_waits_for_its_own_victims_only() -> None:
    d = Driver(budget=100, queue_timeout=60.0)
    d.ready("drains", 10)
    d.withdraw("drains")
    d.idle("idle", 10)
    d.ask("a", 30)
    d.elapse(100)
    assert d.failed("a", out_of_memory=True) == ["unload idle"]
    assert d.elapse(30) == []
    assert d.unloaded("idle") == ["load a"]
    assert d.failed("a", out_of_memory=True) == ["refuse 3"]


def test_of_those_that_may_be_closed_one_that_is_idle_comes_first() -> None:
    d = Driver(budget=12, max_wait=30.0, min_residency=0.0)
    d.ready("a", 4)
    d.ready("b", 4)
    last = d.ready("c", 4)
    d.ask("large", 8)
    d.at += 29
    # At the very moment at which large is overdue: one of two that it needs has just become idle.
    assert d.feed(events.Leave(d.at + 1, last)) == ["unload c", "drain a"]
