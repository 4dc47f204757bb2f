"""What a changed roster does to what is loaded, loading and waited for. No clock, no tasks."""

from __future__ import annotations

from mlx_roster.errors import ModelNotFound
from tests.registry.driver import Driver


def test_reload_keeps_unchanged_models_loaded_and_their_leases() -> None:
    d = Driver(budget=10)
    d.ready("atlas", 4)
    d.idle("scribe", 4)
    assert d.configure(poet={}, scribe={"ttl": 60.0, "priority": 3}) == []
    assert d.ask("atlas")[1] == ["grant 3"]
    assert d.elapse(61) == ["unload scribe"]  # its new ttl holds for it, too


def test_a_changed_model_drains_and_comes_back_new_beside_the_old_one_if_there_is_room() -> None:
    d = Driver(budget=10)
    lease = d.ready("atlas", 4)
    old = d.serials["atlas"]
    assert d.configure(atlas={"version": 2}) == ["drain atlas"]
    ticket, said = d.ask("atlas")
    assert said == ["load atlas"]
    assert d.loaded("atlas", 4) == [f"grant {ticket}"]
    assert d.serials["atlas"] != old
    assert repr(d) == "<Residency 8 B of 10 B | atlas DRAINING 1 leases, atlas READY 1 leases | 0 queued>"
    assert d.leave(lease) == ["unload atlas"]


def test_a_changed_model_waits_for_the_old_one_where_there_is_no_room_for_both() -> None:
    d = Driver(budget=10)
    lease = d.ready("atlas", 6)
    d.configure(atlas={"version": 2})
    old = d.serials["atlas"]
    ticket, said = d.ask("atlas")
    assert (said, d.why[ticket]) == ([], "its files are looked for")
    assert d.leave(lease) == ["unload atlas"]
    d.serials["atlas"] = old
    assert d.unloaded("atlas") == ["load atlas"]


def test_a_removed_model_that_is_busy_drains_and_nobody_new_gets_in() -> None:
    d = Driver(budget=10)
    lease = d.ready("atlas", 4)
    assert d.configure(remove=("atlas",)) == ["drain atlas"]
    ticket, said = d.ask_unlisted("atlas")
    assert said == [f"refuse {ticket}"]
    assert isinstance(d.errors[ticket], ModelNotFound)
    assert d.leave(lease) == ["unload atlas"]
    assert d.unloaded("atlas") == []


def test_who_waits_for_a_model_that_is_removed_is_told() -> None:
    d = Driver(budget=10)
    d.ready("atlas", 10)
    waiter, _ = d.ask("scribe", 10)
    assert d.configure(remove=("scribe",)) == [f"refuse {waiter}"]
    assert str(d.errors[waiter]) == "scribe is no longer in the roster"


def test_reload_during_a_load_of_an_unchanged_model_changes_nothing() -> None:
    d = Driver(budget=10)
    ticket, _ = d.ask("atlas", 4)
    assert d.configure(scribe={}) == []
    assert d.loaded("atlas", 4) == [f"grant {ticket}"]


def test_reload_during_a_load_of_a_changed_model_starts_it_again() -> None:
    d = Driver(budget=10)
    ticket, _ = d.ask("atlas", 4)
    old = d.serials["atlas"]
    assert d.configure(atlas={"version": 2}) == ["cancel atlas", "load atlas"]
    new, d.serials["atlas"] = d.serials["atlas"], old
    assert d.loaded("atlas", 4) == []
    assert d.unloaded("atlas") == []
    d.serials["atlas"] = new
    assert d.loaded("atlas", 4) == [f"grant {ticket}"]


def test_reload_during_a_load_of_a_removed_model_ends_it() -> None:
    d = Driver(budget=10)
    ticket, _ = d.ask("atlas", 4)
    assert d.configure(remove=("atlas",)) == [f"refuse {ticket}", "cancel atlas"]
    assert d.unloaded("atlas") == []


def test_a_download_for_what_the_entry_said_before_is_ended_and_begun_anew() -> None:
    d = Driver(budget=10)
    d.elsewhere.add("far")
    ticket, _ = d.ask("far")
    assert d.configure(far={"version": 2}) == ["cancel locate far", "locate far"]
    assert d.located("far", 4) == ["load far"]
    assert d.loaded("far", 4) == [f"grant {ticket}"]


def test_new_adapters_have_the_files_looked_at_again_but_touch_no_worker() -> None:
    d = Driver(budget=10)
    d.idle("atlas", 4)
    d.sizes["atlas"] = 6
    assert d.configure(atlas={"sizing": "two adapters"}) == []
    assert d.ask("atlas")[1] == ["grant 2"]
    d.leave(2)
    d.withdraw("atlas")
    d.unloaded("atlas")
    d.ready("scribe", 5)
    assert d.ask("atlas")[1] == []  # 6 and 5 do not go together


def test_a_pin_in_the_file_holds_for_what_is_loaded() -> None:
    d = Driver(budget=10).set("atlas", ttl=5.0)
    d.idle("atlas", 10)
    d.configure(atlas={"pin": True})
    assert d.elapse(60) == []
    d.configure(atlas={"pin": False})
    assert d.elapse(1) == ["unload atlas"]


def test_a_model_that_is_put_back_while_the_old_one_drains_waits_for_that() -> None:
    d = Driver(budget=10)
    lease = d.ready("atlas", 4)
    d.configure(remove=("atlas",))
    d.configure(atlas={})
    ticket, said = d.ask("atlas")
    assert said == []
    d.leave(lease)
    assert d.unloaded("atlas") == ["load atlas"]
    assert d.loaded("atlas", 4) == [f"grant {ticket}"]


def test_reload_that_changes_nothing_leaves_downloads_alone() -> None:
    d = Driver(budget=10)
    d.elsewhere.add("far")
    d.ask("far")
    assert d.configure(near={}) == []
    assert d.configure(far={"priority": 2, "ttl": 5.0}) == []


def test_a_load_that_has_not_begun_is_reckoned_anew_when_its_adapters_change() -> None:
    d = Driver(budget=10)
    d.ready("x", 8)
    d.withdraw("x")
    d.ask("a", 4)
    assert "a LOADING (waits for room)" in repr(d)
    d.sizes["a"] = 9
    d.configure(a={"sizing": "an adapter more"})
    d.leave(1)
    assert d.unloaded("x") == ["load a"]
    assert d.state.board.ledger.held == 9


def test_what_a_load_measures_does_not_hold_for_adapters_that_came_meanwhile() -> None:
    d = Driver(budget=10)
    d.ask("a", 4)
    d.sizes["a"] = 9
    d.configure(a={"sizing": "an adapter more"})
    d.loaded("a", 4)
    d.leave(1)
    d.withdraw("a")
    d.unloaded("a")
    d.ready("x", 4)
    assert d.ask("a")[1] == []


def test_what_a_request_asked_to_be_kept_outlives_a_reload() -> None:
    d = Driver(budget=10).set("a", ttl=60.0)
    d.leave(d.ready("a", keep_alive=3600.0))
    d.configure(b={})
    assert d.elapse(3000) == []


def test_an_operators_pin_ends_when_the_entry_says_otherwise() -> None:
    d = Driver(budget=10).set("a", ttl=5.0)
    d.idle("a")
    d.pin("a", pinned=False)
    d.configure(a={"pin": True})
    assert d.elapse(60) == []


def test_a_crash_of_the_old_version_does_not_count_against_the_new_one() -> None:
    d = Driver(budget=10)
    d.ready("atlas", 4)
    d.configure(atlas={"version": 2})
    d.died("atlas")
    d.ready("atlas", 4)
    d.died("atlas")
    assert d.ask("atlas")[1] == ["load atlas"]
