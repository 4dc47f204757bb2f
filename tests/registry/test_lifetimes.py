"""TTL, pins, cooldown, deadlines: how long a model stays, and when one is left alone. No clock, no tasks."""

from __future__ import annotations

import pytest

from mlx_roster.errors import Draining, LoadCooldown, LoadFailed, ModelTooLarge
from mlx_roster.registry import events
from tests.registry.driver import Driver


def test_ttl_counts_from_end_of_last_lease() -> None:
    d = Driver(budget=10).set("atlas", ttl=60.0)
    first = d.ready("atlas")
    assert d.elapse(600) == []
    second, _ = d.ask("atlas")
    d.leave(first)
    assert d.elapse(600) == []
    d.leave(second)
    assert d.elapse(59) == []
    assert d.elapse(1) == ["unload atlas"]
    assert d.story("atlas")[-1] == "unloading: idle for 1m, its ttl"


def test_steady_traffic_keeps_a_model() -> None:
    d = Driver(budget=10).set("atlas", ttl=10.0)
    d.idle("atlas")
    for _ in range(20):
        assert d.elapse(8) == []
        ticket, said = d.ask("atlas")
        assert said == [f"grant {ticket}"]
        assert d.leave(ticket) == []


def test_what_a_worker_says_by_itself_does_not_reset_its_ttl() -> None:
    d = Driver(budget=10).set("atlas", ttl=10.0)
    d.idle("atlas")
    for _ in range(9):
        d.elapse(1)
        d.feed(events.Reported(d.at, d.serials["atlas"], 1))
        d.feed(events.Progressed(d.at, d.serials["atlas"], d.at))
    assert d.elapse(1) == ["unload atlas"]


def test_ttl_expiry_races_a_new_request() -> None:
    d = Driver(budget=10).set("atlas", ttl=10.0)
    d.idle("atlas")
    d.at += 9
    # The request comes with the very tick of the expiry, just before it: it has the model.
    ticket, said = d.ask("atlas")
    assert said == [f"grant {ticket}"]
    assert d.feed(events.Tick(d.at)) == []
    d.leave(ticket)
    assert d.elapse(10) == ["unload atlas"]
    # And just after it: the model is on its way out, is not revived, and comes back once it is gone.
    late, said = d.ask("atlas")
    assert (said, d.why[late]) == ([], "it is being unloaded")
    assert d.unloaded("atlas") == ["load atlas"]
    assert d.loaded("atlas") == [f"grant {late}"]


def test_keep_alive_of_a_request_comes_before_the_ttl_of_its_model() -> None:
    d = Driver(budget=10).set("atlas", ttl=10.0)
    d.leave(d.ready("atlas", keep_alive=100.0))
    assert d.elapse(99) == []
    assert d.elapse(1) == ["unload atlas"]


def test_keep_alive_zero_unloads_after_the_stream() -> None:
    d = Driver(budget=10)
    ticket = d.ready("atlas", keep_alive=0.0)
    other, _ = d.ask("atlas")
    assert d.leave(other) == []
    assert d.leave(ticket) == ["unload atlas"]


def test_the_request_that_ends_last_decides_how_long_a_model_is_kept() -> None:
    d = Driver(budget=10).set("atlas", ttl=50.0)
    ticket = d.ready("atlas", keep_alive=0.0)
    other, _ = d.ask("atlas")
    assert d.leave(ticket) == []
    assert d.leave(other) == []
    assert d.elapse(50) == ["unload atlas"]


def test_pinned_is_never_evicted_and_the_error_names_the_blockers() -> None:
    d = Driver(budget=10).set("atlas", pin=True, ttl=5.0)
    d.idle("atlas", 4)
    d.idle("poet", 3)
    assert d.elapse(600) == []
    ticket, said = d.ask("scribe", 7)
    assert said == [f"refuse {ticket}"]
    assert isinstance(d.errors[ticket], ModelTooLarge)
    assert str(d.errors[ticket]) == (
        "scribe needs 7 B of a budget of 10 B, of which pinned models have the rest: atlas (4 B)"
    )
    assert d.ask("clerk", 6)[1] == ["unload poet"]


def test_a_pin_by_an_operator_holds_until_it_is_taken_back() -> None:
    d = Driver(budget=10).set("atlas", ttl=5.0)
    d.idle("atlas", 10)
    assert d.pin("atlas") == []
    assert d.elapse(60) == []
    assert d.ask("scribe", 5)[1] == ["refuse 2"]
    assert d.pin("atlas", pinned=False) == []
    assert d.elapse(4) == []
    assert d.elapse(1) == ["unload atlas"]


def test_who_waits_for_a_place_that_is_pinned_meanwhile_is_refused() -> None:
    d = Driver(budget=10)
    d.ready("atlas", 10)
    ticket, _ = d.ask("scribe", 5)
    assert d.pin("atlas") == [f"refuse {ticket}"]


def test_failed_load_cools_down_10_20_40_to_300_and_success_clears_it() -> None:
    d = Driver(budget=10)
    for cooldown in (10, 20, 40, 80, 160, 300, 300):
        ticket, said = d.ask("atlas")
        assert said == ["load atlas"]
        assert d.failed("atlas") == [f"refuse {ticket}"]
        d.elapse(cooldown - 2)
        early, said = d.ask("atlas")
        assert said == [f"refuse {early}"]
        error = d.errors[early]
        assert isinstance(error, LoadCooldown)
        assert error.retry_after == 1
    d.elapse(300)
    d.idle("atlas")
    d.withdraw("atlas")
    d.unloaded("atlas")
    d.ask("atlas")
    d.failed("atlas")
    assert d.elapse(9) == []
    assert d.ask("atlas")[1] == ["load atlas"]


def test_config_change_clears_cooldown() -> None:
    d = Driver(budget=10)
    d.ask("atlas")
    d.failed("atlas")
    ticket, _ = d.ask("atlas")
    assert isinstance(d.errors[ticket], LoadCooldown)
    d.configure(atlas={"version": 2})
    assert d.ask("atlas")[1] == ["load atlas"]


def test_files_that_are_not_to_be_had_cool_down_too() -> None:
    d = Driver(budget=10)
    d.elsewhere.add("far")
    d.ask("far")
    d.not_located("far")
    ticket, _ = d.ask("far")
    assert str(d.errors[ticket]) == "far is not loaded for another 9 s: far is not there"


def test_one_crash_costs_no_wait_and_a_crash_loop_cools_down() -> None:
    d = Driver(budget=10)
    for count, cooldown in enumerate((0, 10, 20), 1):
        d.ready("atlas")
        d.died("atlas")
        if cooldown:
            ticket, _ = d.ask("atlas")
            assert str(d.errors[ticket]) == (
                f"atlas is not loaded for another {cooldown - 1} s: its worker has crashed {count} times in a row"
            )
            d.elapse(cooldown)


def test_a_crash_after_a_steady_life_is_the_first_again() -> None:
    d = Driver(budget=10)
    d.ready("atlas")
    d.died("atlas")
    d.ready("atlas")
    d.elapse(60)
    d.died("atlas")
    assert d.ask("atlas")[1] == ["load atlas"]


def test_a_crash_loop_takes_nobody_else_with_it() -> None:
    d = Driver(budget=10)
    other = d.ready("scribe", 5)
    for _ in range(3):
        d.ready("atlas", 5)
        d.died("atlas")
        d.elapse(400)
    assert d.ask("scribe")[1] == ["grant 5"]
    assert d.leave(other) == []


# Deadlines that watch progress


def test_a_load_that_stands_still_is_ended_and_one_that_goes_on_is_not() -> None:
    d = Driver(budget=10, load_timeout=60.0)
    ticket, _ = d.ask("atlas")
    for _ in range(10):
        assert d.elapse(50) == []
        d.progressed("atlas")
    assert d.elapse(59) == []
    assert d.elapse(1) == [f"refuse {ticket}", "cancel atlas"]
    assert isinstance(d.errors[ticket], LoadFailed)
    assert d.loaded("atlas") == []  # too late
    d.unloaded("atlas")
    assert isinstance(d.errors[d.ask("atlas")[0]], LoadCooldown)


def test_draining_goes_on_as_long_as_anything_is_produced_and_is_cut_when_nothing_is() -> None:
    d = Driver(budget=10, drain_timeout=30.0)
    first = d.ready("atlas")
    d.ask("atlas")
    assert d.withdraw("atlas") == ["drain atlas"]
    for _ in range(20):
        assert d.elapse(25) == []
        d.progressed("atlas")
    assert d.leave(first) == []
    assert d.elapse(29) == []
    assert d.elapse(1) == ["cut atlas"]
    (error,) = (action.error for action in d.actions if isinstance(action, events.Cut))
    assert isinstance(error, Draining)
    assert str(error) == "atlas is going away, and has said nothing for 30s"
    # Its streams end with that error, and its worker's end is what gives the memory back.
    assert d.leave(2) == []
    assert d.unloaded("atlas") == []
    assert repr(d) == "<Residency 0 B of 10 B | no residents | 0 queued>"


# Operators


@pytest.mark.parametrize("force", [False, True])
def test_an_idle_model_is_unloaded_at_once(force: bool) -> None:
    d = Driver(budget=10)
    d.idle("atlas")
    assert d.withdraw("atlas", force=force) == ["unload atlas"]


def test_unloading_drains_and_force_cuts_also_one_that_drains_already() -> None:
    d = Driver(budget=10)
    d.ready("atlas")
    assert d.withdraw("atlas") == ["drain atlas"]
    assert d.withdraw("atlas") == []
    assert d.withdraw("atlas", force=True) == ["cut atlas"]
    assert d.withdraw("atlas", force=True) == []
    assert d.unloaded("atlas") == []
    assert d.leave(1) == []
    assert d.ask("atlas")[1] == ["load atlas"]


def test_unloading_a_model_that_is_loading_ends_the_load_and_tells_who_waits() -> None:
    d = Driver(budget=10)
    d.ask("atlas")
    assert d.withdraw("atlas") == ["refuse 1", "cancel atlas"]
    assert str(d.errors[1]) == "atlas was unloaded by an operator"
    assert d.unloaded("atlas") == []


def test_unloading_a_model_that_is_downloaded_ends_that() -> None:
    d = Driver(budget=10)
    d.elsewhere.add("far")
    d.ask("far")
    assert d.withdraw("far") == ["cancel locate far", "refuse 1"]
