"""The pure state machine, scenario by scenario. No clock, no tasks: events in, actions out."""

from __future__ import annotations

import pytest

from mlx_roster.errors import ModelTooLarge
from mlx_roster.registry import events
from mlx_roster.registry.resident import InvalidTransition, State
from tests.registry.driver import Driver

# Loading and leases


def test_resident_model_is_granted_without_queueing() -> None:
    d = Driver(budget=10)
    d.ready("atlas")
    assert d.ask("atlas") == (2, ["grant 2"])
    assert repr(d) == "<Residency 1 B of 10 B | atlas READY 2 leases | 0 queued>"


def test_a_cold_model_is_loaded_and_its_waiter_granted_in_the_step_that_makes_it_ready() -> None:
    d = Driver(budget=10)
    assert d.ask("atlas", 4) == (1, ["load atlas"])
    assert repr(d) == "<Residency 4 B of 10 B | atlas LOADING | 1 queued>"
    assert d.loaded("atlas", 4) == ["grant 1"]


def test_ten_concurrent_cold_requests_make_one_load() -> None:
    d = Driver(budget=10)
    said = [d.ask("atlas")[1] for _ in range(10)]
    assert said == [["load atlas"], *[[]] * 9]
    assert d.loaded("atlas") == [f"grant {ticket}" for ticket in range(1, 11)]


def test_load_error_fails_all_its_waiters_and_a_later_request_retries() -> None:
    d = Driver(budget=10)
    d.ask("atlas")
    d.ask("atlas")
    assert d.failed("atlas") == ["refuse 1", "refuse 2"]
    assert d.errors[1] is d.errors[2]
    d.elapse(10)
    assert d.ask("atlas") == (3, ["load atlas"])


def test_busy_model_is_never_evicted_and_what_needs_its_place_queues() -> None:
    d = Driver(budget=10)
    lease = d.ready("atlas", 10)
    assert d.ask("scribe", 10) == (2, [])
    assert repr(d) == "<Residency 10 B of 10 B | atlas READY 1 leases | 1 queued>"
    assert d.leave(lease) == ["unload atlas"]
    assert d.unloaded("atlas") == ["load scribe"]
    assert d.loaded("scribe", 10) == ["grant 2"]


def test_loading_model_is_never_evicted() -> None:
    d = Driver(budget=10)
    d.ask("atlas", 10)
    assert d.ask("scribe", 10) == (2, [])
    assert d.loaded("atlas", 10) == ["grant 1"]


def test_loading_model_is_not_evicted_for_one_that_is_overdue_or_that_runs_out_of_memory() -> None:
    d = Driver(budget=10, max_wait=5.0, min_residency=0.0)
    d.ask("atlas", 6)
    d.ask("poet", 4)
    d.ask("scribe", 10)
    assert d.elapse(60) == []
    assert d.failed("poet", out_of_memory=True) == ["refuse 2"]
    assert d.loaded("atlas", 6)[0] == "grant 1"


def test_evict_between_loaded_and_first_lease_is_impossible() -> None:
    d = Driver(budget=10)
    d.ask("atlas", 10)
    d.ask("scribe", 10)
    d.ask("atlas", 10)
    # scribe has waited all along and atlas is ready now: those who waited for atlas come first.
    assert d.loaded("atlas", 10) == ["grant 1", "grant 3"]
    assert d.leave(1) == []
    assert d.leave(3) == ["unload atlas"]


def test_request_for_a_draining_model_queues_and_is_not_resurrected() -> None:
    d = Driver(budget=10)
    d.idle("atlas", 10)
    d.ask("scribe", 10)
    assert d.ask("atlas", 10) == (3, [])
    assert repr(d) == "<Residency 10 B of 10 B | atlas UNLOADING, scribe LOADING (waits for room) | 2 queued>"
    assert d.unloaded("atlas") == ["load scribe"]
    assert d.loaded("scribe", 10) == ["grant 2"]
    assert d.leave(2) == ["unload scribe"]
    assert d.unloaded("scribe") == ["load atlas"]


def test_two_waiters_share_one_eviction() -> None:
    d = Driver(budget=10)
    d.idle("atlas", 10)
    assert d.ask("scribe", 5) == (2, ["unload atlas"])
    assert d.ask("scribe", 5) == (3, [])
    assert d.ask("poet", 5) == (4, [])
    assert d.unloaded("atlas") == ["load scribe", "load poet"]


def test_disjoint_models_load_in_parallel() -> None:
    d = Driver(budget=10)
    assert d.ask("atlas", 5)[1] == ["load atlas"]
    assert d.ask("scribe", 5)[1] == ["load scribe"]


def test_lease_double_release_is_a_noop() -> None:
    d = Driver(budget=10)
    first = d.ready("atlas", 10)
    d.ask("atlas")
    d.leave(first)
    assert d.leave(first) == []
    d.ask("scribe", 10)
    assert repr(d) == "<Residency 10 B of 10 B | atlas READY 1 leases | 1 queued>"


def test_crash_takes_down_one_model_only_and_the_next_request_reloads() -> None:
    d = Driver(budget=10)
    lease = d.ready("atlas")
    d.ready("scribe")
    assert d.died("atlas") == []
    assert d.leave(lease) == []
    assert repr(d) == "<Residency 1 B of 10 B | scribe READY 1 leases | 0 queued>"
    assert d.ask("atlas") == (3, ["load atlas"])


def test_crash_makes_room_for_those_who_wait() -> None:
    d = Driver(budget=10)
    d.ready("atlas", 10)
    d.ask("scribe", 10)
    assert d.died("atlas") == ["load scribe"]


# Queueing


def test_queue_collation_abcabc_costs_three_loads() -> None:
    d = Driver(budget=10)
    for model in "abcabc":
        d.ask(model, 10)
    while loading := d.state.board.ledger.current_ones():
        (resident,) = loading
        for granted in d.loaded(resident.model, 10):
            d.leave(int(granted.removeprefix("grant ")))
        if not d.state.board.queue.lines:
            break
        d.unloaded(resident.model)
    loads = [action.model for action in d.actions if isinstance(action, events.StartLoad)]
    assert loads == ["a", "b", "c"]
    assert repr(d) == "<Residency 10 B of 10 B | c READY | 0 queued>"


def test_resident_model_is_not_queued_behind_a_swap() -> None:
    d = Driver(budget=10)
    d.ready("atlas", 6)
    d.ask("scribe", 6)
    assert d.ask("atlas", 6) == (3, ["grant 3"])


def test_client_disconnect_in_queue_starts_no_load() -> None:
    d = Driver(budget=10)
    lease = d.ready("atlas", 10)
    waiter, _ = d.ask("scribe", 10)
    assert d.leave(waiter) == []
    assert d.leave(lease) == []
    assert repr(d) == "<Residency 10 B of 10 B | atlas READY | 0 queued>"


def test_client_disconnect_during_load_keeps_it_for_other_waiters() -> None:
    d = Driver(budget=10)
    d.ask("atlas")
    d.ask("atlas")
    assert d.leave(1) == []
    assert d.loaded("atlas") == ["grant 2"]


def test_a_load_that_nobody_waits_for_is_cancelled_and_its_bytes_come_back_when_it_is_gone() -> None:
    d = Driver(budget=10)
    d.ask("atlas", 10)
    assert d.leave(1) == ["cancel atlas"]
    assert d.ask("scribe", 10) == (2, [])
    assert d.unloaded("atlas") == ["load scribe"]


def test_a_load_that_was_cancelled_as_it_finished_serves_nobody() -> None:
    d = Driver(budget=10)
    d.ask("atlas", 10)
    d.leave(1)
    assert d.loaded("atlas", 10) == []
    assert d.unloaded("atlas") == []
    assert repr(d) == "<Residency 0 B of 10 B | no residents | 0 queued>"


def test_a_load_that_waits_for_room_and_is_abandoned_never_starts() -> None:
    d = Driver(budget=10)
    d.idle("atlas", 10)
    d.ask("scribe", 10)
    assert d.leave(2) == []
    assert d.unloaded("atlas") == []
    assert repr(d) == "<Residency 0 B of 10 B | no residents | 0 queued>"


def test_retry_storm_does_not_multiply_loads() -> None:
    d = Driver(budget=10)
    said = []
    for _ in range(50):
        ticket, first = d.ask("atlas")
        said += first
        d.ask("atlas")
        said += d.leave(ticket)
    assert said == ["load atlas"]


# Memory


def test_model_larger_than_budget_is_507_at_once_and_evicts_nothing() -> None:
    d = Driver(budget=10)
    d.idle("atlas", 4)
    assert d.ask("whale", 11) == (2, ["refuse 2"])
    assert isinstance(d.errors[2], ModelTooLarge)
    assert str(d.errors[2]) == "whale needs 11 B and the memory budget is 10 B"
    assert repr(d) == "<Residency 4 B of 10 B | atlas READY | 0 queued>"


def test_bytes_of_loads_in_progress_are_reserved() -> None:
    d = Driver(budget=10)
    d.ask("atlas", 6)
    assert d.ask("scribe", 6) == (2, [])
    assert d.ask("poet", 4) == (3, ["load poet"])


def test_fewest_sufficient_victims() -> None:
    d = Driver(budget=10)
    d.idle("crumb", 1)
    d.idle("cake", 5)
    d.idle("pie", 4)
    # cake alone is enough; the crumb is older but would not help.
    assert d.ask("tart", 5)[1] == ["unload cake"]


def test_among_equal_victims_the_one_whose_last_lease_ended_first_goes() -> None:
    d = Driver(budget=10)
    d.idle("atlas", 5)
    d.idle("scribe", 5)
    d.leave(d.ask("atlas")[0])
    assert d.ask("poet", 5)[1] == ["unload scribe"]


def test_nothing_is_evicted_when_evicting_would_not_be_enough() -> None:
    d = Driver(budget=10)
    d.ready("atlas", 6)
    d.idle("crumb", 1)
    assert d.ask("tart", 8)[1] == []
    assert repr(d) == "<Residency 7 B of 10 B | atlas READY 1 leases, crumb READY | 1 queued>"


def test_estimate_is_replaced_by_measurement() -> None:
    d = Driver(budget=10)
    d.ask("atlas", 8)
    d.loaded("atlas", 3)
    assert d.ask("scribe", 7)[1] == ["load scribe"]


def test_a_measurement_is_remembered_for_the_next_load() -> None:
    d = Driver(budget=10)
    d.ask("atlas", 3)
    d.loaded("atlas", 12)
    assert d.leave(1) == ["unload atlas"]
    d.unloaded("atlas")
    assert d.ask("atlas", 3) == (2, ["refuse 2"])


def test_room_for_adapters_that_have_not_come_yet_is_given_to_nobody() -> None:
    d = Driver(budget=10)
    d.ask("atlas", 8)
    d.loaded("atlas", 3, growth=4)
    assert d.ask("scribe", 4)[1] == []
    # They come: what they take is no longer to come.
    assert d.reported("atlas", 7) == []
    assert d.ask("poet", 3)[1] == ["load poet"]
    assert repr(d) == "<Residency 10 B of 10 B | atlas READY 1 leases, poet LOADING | 2 queued>"


def test_room_for_adapters_is_remembered_for_the_next_load() -> None:
    d = Driver(budget=10)
    d.ask("atlas", 4)
    d.loaded("atlas", 4, growth=5)
    d.leave(1)
    assert d.ask("scribe", 3)[1] == ["unload atlas"]
    assert d.unloaded("atlas") == ["load scribe"]
    assert d.ask("atlas", 4)[1] == []


def test_growth_that_is_reported_past_the_budget_evicts_the_idle() -> None:
    d = Driver(budget=10)
    d.idle("atlas", 4)
    d.ready("scribe", 4)
    assert d.reported("scribe", 4, growth=3) == ["unload atlas"]


def test_tiny_model_is_charged_its_bytes() -> None:
    d = Driver(budget=10 * 2**30)
    d.ready("tiny", 1_400_000)
    assert d.state.board.ledger.held == 1_400_000


def test_growth_past_the_budget_evicts_the_idle_and_never_the_busy() -> None:
    d = Driver(budget=10)
    d.idle("atlas", 4)
    d.ready("scribe", 4)
    assert d.reported("scribe", 7) == ["unload atlas"]
    assert d.reported("scribe", 12) == []


def test_oom_on_load_evicts_idle_and_retries_once() -> None:
    d = Driver(budget=10)
    d.idle("atlas", 2)
    d.idle("crumb", 1)
    d.ask("scribe", 5)
    assert d.failed("scribe", out_of_memory=True) == ["unload atlas", "unload crumb"]
    assert d.unloaded("atlas") == []
    assert d.unloaded("crumb") == ["load scribe"]
    assert d.failed("scribe", out_of_memory=True) == ["refuse 3"]


def test_oom_with_nothing_else_fails_fast() -> None:
    d = Driver(budget=10)
    d.ready("atlas", 2)
    d.ask("scribe", 5)
    assert d.failed("scribe", out_of_memory=True) == ["refuse 2"]


def test_failed_load_leaves_residents_serving() -> None:
    d = Driver(budget=10)
    d.ready("atlas", 5)
    d.ask("scribe", 5)
    d.failed("scribe")
    assert d.ask("atlas") == (3, ["grant 3"])


def test_a_model_that_turns_out_too_large_is_refused_and_not_left_waiting() -> None:
    d = Driver(budget=10)
    d.ask("atlas", 3)
    d.loaded("atlas", 12)
    d.leave(1)
    assert d.ask("atlas", 3) == (2, ["refuse 2"])  # it is on its way out, with a measurement that no longer fits


def test_an_illegal_move_tells_the_story() -> None:
    d = Driver(budget=10)
    d.idle("atlas")
    resident = d.state.board.ledger[d.serials["atlas"]]
    with pytest.raises(InvalidTransition, match=r"ready: loaded in 1\.00 s, 1 B measured"):
        resident.move(State.LOADING, 9.0, "a bug")
