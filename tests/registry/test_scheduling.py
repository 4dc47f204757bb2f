"""Who waits for whom, and how long: docs/scheduling.md, rule by rule. No clock, no tasks."""

from __future__ import annotations

from mlx_roster.errors import LoadFailed, QueueFull, QueueTimeout
from tests.registry.driver import Driver


def test_max_wait_bounds_starvation_of_a_cold_model() -> None:
    d = Driver(budget=10, max_wait=30.0, min_residency=0.0)
    lease = d.ready("hot", 10)
    cold, said = d.ask("cold", 10)
    assert (said, d.why[cold]) == ([], "in the way: hot (ready, 1 running)")
    second, said = d.ask("hot")
    assert said == [f"grant {second}"]
    assert d.elapse(29) == ["drain hot"]  # one second has passed with the request before
    late, said = d.ask("hot")
    assert (said, d.why[late]) == ([], "it is being unloaded")
    assert d.leave(lease) == []
    assert d.leave(second) == ["unload hot"]
    assert d.unloaded("hot") == ["load cold"]
    assert d.loaded("cold", 10) == [f"grant {cold}"]
    assert d.leave(cold) == ["unload cold"]
    assert d.unloaded("cold") == ["load hot"]
    assert d.loaded("hot", 10) == [f"grant {late}"]


def test_min_residency_prevents_livelock_when_everyone_is_overdue() -> None:
    d = Driver(budget=10, max_wait=5.0, min_residency=20.0)
    d.ready("a", 10)
    waiting = {model: d.ask(model, 10)[0] for model in "bc"}
    assert d.elapse(15) == []  # both are overdue, and a is fresh
    more, said = d.ask("a")
    assert said == [f"grant {more}"]
    assert d.elapse(5) == ["drain a"]
    d.leave(1)
    d.leave(more)
    d.ask("a", 10)
    assert d.unloaded("a") == ["load b"]
    assert d.loaded("b", 10) == [f"grant {waiting['b']}"]
    # c has been overdue all along, and still b has its time.
    assert d.elapse(19) == []
    assert d.elapse(1) == ["drain b"]
    assert repr(d) == "<Residency 10 B of 10 B | b DRAINING 1 leases, c LOADING (waits for room) | 2 queued>"


def test_min_residency_may_be_a_multiple_of_the_time_that_loading_took() -> None:
    d = Driver(budget=10, max_wait=1.0)
    d.ask("slow", 10)
    d.elapse(9)
    d.loaded("slow", 10)  # ten seconds after it was asked for
    d.ask("other", 10)
    assert d.elapse(28) == []
    assert d.elapse(1) == ["drain slow"]


def test_an_idle_model_makes_room_at_once_however_fresh_it_is() -> None:
    d = Driver(budget=10, min_residency=600.0)
    d.idle("a", 10)
    assert d.ask("b", 10)[1] == ["unload a"]


def test_an_overdue_model_is_not_overtaken_by_others_that_would_take_its_room() -> None:
    d = Driver(budget=10, max_wait=5.0, min_residency=60.0)
    first, second = d.ready("a", 5), d.ready("b", 5)
    large, _ = d.ask("large", 10)
    d.elapse(5)
    d.leave(first)  # a is idle, b fresh and busy: large needs both
    small, said = d.ask("small", 5)
    assert said == []
    assert d.leave(second) == ["unload a", "unload b"]
    d.unloaded("a")
    assert d.unloaded("b") == ["load large"]
    assert d.loaded("large", 10) == [f"grant {large}"]
    assert d.leave(large) == ["unload large"]
    assert d.unloaded("large") == ["load small"]
    assert d.loaded("small", 5) == [f"grant {small}"]


def test_what_fits_beside_an_overdue_model_does_not_wait_for_it() -> None:
    d = Driver(budget=10, max_wait=5.0, min_residency=60.0)
    d.ready("busy", 5)
    d.ask("large", 6)
    d.elapse(5)
    assert d.ask("small", 4)[1] == ["load small"]


def test_closing_takes_the_fewest_and_spares_the_fresh_and_the_pinned() -> None:
    d = Driver(budget=12, max_wait=10.0, min_residency=25.0).set("pinned", pin=True)
    d.ready("pinned", 3)
    d.ready("old", 3)
    d.ready("older", 3)
    d.elapse(26)
    d.ready("fresh", 3)
    d.ask("cold", 3)
    assert d.elapse(10) == ["drain old"]


def test_of_the_models_that_wait_the_one_with_the_higher_priority_is_loaded_first() -> None:
    d = Driver(budget=10).set("batch", priority=-1).set("chat", priority=5)
    lease = d.ready("a", 10)
    d.ask("batch", 10)
    d.ask("plain", 10)
    d.ask("chat", 10)
    d.leave(lease)
    assert d.unloaded("a") == ["load chat"]
    d.loaded("chat", 10)
    d.leave(4)
    assert d.unloaded("chat") == ["load plain"]


def test_priority_does_not_starve_one_that_is_overdue() -> None:
    d = Driver(budget=10, max_wait=10.0).set("chat", priority=5)
    lease = d.ready("a", 10)
    d.ask("batch", 10)
    d.elapse(9)
    d.ask("chat", 10)
    d.leave(lease)
    assert d.unloaded("a") == ["load batch"]


def test_queue_limit_429_counts_queued() -> None:
    d = Driver(budget=10).set("scribe", max_queued=2)
    d.ready("atlas", 10)
    d.ask("scribe", 10)
    d.ask("scribe", 10)
    ticket, said = d.ask("scribe", 10)
    assert said == [f"refuse {ticket}"]
    error = d.errors[ticket]
    assert isinstance(error, QueueFull)
    assert str(error) == "2 requests wait for scribe already, and its max_queued is 2"
    # A load of unknown length, and before it as long as atlas may go on.
    assert error.retry_after == 5 + 28


def test_cancelled_waiter_returns_its_place() -> None:
    d = Driver(budget=10).set("scribe", max_queued=1)
    d.ready("atlas", 10)
    waiter, _ = d.ask("scribe", 10)
    d.leave(waiter)
    ticket, said = d.ask("scribe", 10)
    assert (said, d.why[ticket]) == ([], "in the way: atlas (ready, 1 running)")


def test_global_queue_full() -> None:
    d = Driver(budget=10, max_queued=2)
    d.ready("atlas", 10)
    d.ask("scribe", 10)
    d.ask("poet", 10)
    ticket, said = d.ask("clerk", 10)
    assert said == [f"refuse {ticket}"]
    assert str(d.errors[ticket]) == "2 requests wait already, and scheduling.max_queued is 2"
    # Who finds a model ready waits for nobody.
    assert d.ask("atlas")[1] == [f"grant {ticket + 1}"]


def test_who_has_a_lease_but_no_place_in_the_batch_counts_as_waiting() -> None:
    d = Driver(budget=10).set("atlas", max_concurrency=2, max_queued=1)
    d.ready("atlas")
    assert d.ask("atlas")[1] == ["grant 2"]
    assert d.ask("atlas")[1] == ["grant 3"]
    ticket, said = d.ask("atlas")
    assert said == ["refuse 4"]
    error = d.errors[ticket]
    assert isinstance(error, QueueFull)
    d.leave(1)
    assert d.ask("atlas")[1] == ["grant 5"]


def test_one_client_cannot_take_every_place_in_the_queue() -> None:
    d = Driver(budget=10, max_queued=4)
    d.ready("atlas", 10)
    greedy = {"client": "laptop", "client_limit": 2}
    d.ask("scribe", 10, **greedy)
    d.ask("poet", 10, **greedy)
    ticket, said = d.ask("clerk", 10, **greedy)
    assert said == [f"refuse {ticket}"]
    error = d.errors[ticket]
    assert isinstance(error, QueueFull)
    assert str(error) == "2 requests of this API key wait already, and no more than 2 of its may"
    assert error.retry_after >= 1
    # There is room for others, and for nobody in particular.
    assert d.ask("clerk", 10, client="phone", client_limit=1)[1] == []
    assert d.ask("clerk", 10)[1] == []
    ticket, said = d.ask("clerk", 10, client="phone", client_limit=2)
    assert (said, str(d.errors[ticket])) == (
        [f"refuse {ticket}"],
        "4 requests wait already, and scheduling.max_queued is 4",
    )


def test_one_client_cannot_take_every_place_of_one_model() -> None:
    d = Driver(budget=10, max_queued=20).set("scribe", max_queued=5)
    d.ready("atlas", 10)
    for _ in range(3):
        assert d.ask("scribe", 10, client="laptop")[1] == []
    ticket, said = d.ask("scribe", 10, client="laptop")
    assert (said, str(d.errors[ticket])) == (
        [f"refuse {ticket}"],
        "3 requests of this API key wait for scribe already, and no more than 3 of its may",
    )
    # It may wait for others; others may for this one; and who has a limit of its own has none but that.
    assert d.ask("poet", 10, client="laptop")[1] == []
    assert d.ask("scribe", 10, client="phone", client_limit=5)[1] == []
    assert d.ask("scribe", 10, client="phone", client_limit=5)[1] == []


def test_of_all_places_a_client_may_take_half() -> None:
    d = Driver(budget=10, max_queued=3)
    d.ready("atlas", 10)
    assert d.ask("scribe", 10, client="laptop")[1] == []
    assert d.ask("poet", 10, client="laptop")[1] == []
    ticket, said = d.ask("clerk", 10, client="laptop")
    assert said == [f"refuse {ticket}"]
    assert str(d.errors[ticket]) == "2 requests of this API key wait already, and no more than 2 of its may"


def test_places_in_a_batch_that_are_waited_for_are_places_too() -> None:
    d = Driver(budget=10).set("atlas", max_concurrency=1, max_queued=4)
    d.ready("atlas", client="laptop")
    assert [d.ask("atlas", client="laptop")[1] for _ in range(3)] == [["grant 2"], ["grant 3"], ["refuse 4"]]
    assert [d.ask("atlas", client="phone")[1] for _ in range(3)] == [["grant 5"], ["grant 6"], ["refuse 7"]]


def test_a_clients_place_comes_back_when_it_leaves_or_is_granted_or_refused() -> None:
    d = Driver(budget=10)
    lease = d.ready("atlas", 10)
    only = {"client": "laptop", "client_limit": 1}
    waiter, _ = d.ask("scribe", 10, **only)
    d.leave(waiter)
    waiter, said = d.ask("scribe", 10, **only)
    assert said == []
    d.leave(lease)
    assert d.unloaded("atlas") == ["load scribe"]
    assert d.loaded("scribe", 10) == [f"grant {waiter}"]
    # What runs does not wait.
    assert d.ask("poet", 10, **only)[1] == []
    assert d.ask("poet", 10, **only)[1] == ["refuse 5"]
    d.withdraw("poet")
    assert d.ask("poet", 10, **only)[1] == []


def test_none_of_a_clients_may_wait_and_all_of_them_may_run() -> None:
    d = Driver(budget=10).set("atlas", max_concurrency=2)
    none = {"client": "batch", "client_limit": 0}
    assert d.ask("atlas", **none)[1] == ["refuse 1"]
    d.ready("atlas")
    assert d.ask("atlas", **none)[1] == ["grant 3"]
    assert d.ask("atlas", **none)[1] == ["refuse 4"]


def test_a_client_whose_requests_have_a_lease_but_no_place_in_the_batch_waits() -> None:
    d = Driver(budget=10).set("atlas", max_concurrency=2)
    d.ready("atlas", client="phone", client_limit=5)
    two = {"client": "laptop", "client_limit": 2}
    # The first of these runs, beside the phone's. The others have no place.
    assert [d.ask("atlas", **two)[1] for _ in range(4)] == [["grant 2"], ["grant 3"], ["grant 4"], ["refuse 5"]]
    assert d.ask("atlas", client="phone", client_limit=1)[1] == ["grant 6"]
    d.leave(1)
    assert d.ask("atlas", **two)[1] == ["grant 7"]
    assert d.ask("atlas", **two)[1] == ["refuse 8"]


def test_what_is_exempt_counts_for_no_client() -> None:
    d = Driver(budget=10)
    d.ready("atlas", 10)
    for _ in range(3):
        assert d.ask("scribe", 10, exempt=True, client="laptop", client_limit=1)[1] == []
    assert d.ask("scribe", 10, client="laptop", client_limit=1)[1] == []


def test_queue_deadline_503_with_retry_after() -> None:
    d = Driver(budget=10, queue_timeout=60.0, max_wait=300.0)
    d.ready("atlas", 10)
    first, _ = d.ask("scribe", 10)
    second, _ = d.ask("scribe", 10)
    assert d.elapse(59) == [f"refuse {first}"]
    error = d.errors[first]
    assert isinstance(error, QueueTimeout)
    assert str(error) == "scribe could not be loaded within 1m; in the way: atlas (ready, 1 running)"
    assert error.retry_after == 5 + 240
    assert d.elapse(1) == [f"refuse {second}"]


def test_queue_deadline_does_not_run_while_a_model_is_loaded_or_downloaded() -> None:
    d = Driver(budget=10, queue_timeout=60.0)
    d.elsewhere.add("far")
    ticket, said = d.ask("far", 10)
    assert said == ["locate far"]
    assert d.elapse(200) == []
    assert d.located("far", 10) == ["load far"]
    assert d.elapse(200) == []
    assert d.loaded("far", 10) == [f"grant {ticket}"]


def test_queue_deadline_begins_anew_after_a_download() -> None:
    d = Driver(budget=10, queue_timeout=60.0, max_wait=300.0)
    d.ready("atlas", 10)
    d.elsewhere.add("far")
    ticket, _ = d.ask("far", 10)
    d.elapse(200)
    d.located("far", 10)
    assert d.elapse(59) == []
    assert d.elapse(1) == [f"refuse {ticket}"]


def test_a_place_that_is_given_up_while_others_drain_for_it_starts_no_load() -> None:
    d = Driver(budget=10, max_wait=5.0, min_residency=0.0)
    lease = d.ready("hot", 10)
    cold, _ = d.ask("cold", 10)
    assert d.elapse(5) == ["drain hot"]
    d.leave(cold)
    assert d.leave(lease) == ["unload hot"]
    assert d.unloaded("hot") == []
    assert repr(d) == "<Residency 0 B of 10 B | no residents | 0 queued>"


def test_the_exempt_are_held_up_by_no_limit_and_no_deadline() -> None:
    d = Driver(budget=10, max_queued=0, queue_timeout=10.0, max_wait=300.0)
    d.ask("atlas", 10, exempt=True)
    d.loaded("atlas", 10)
    assert d.ask("scribe", 10, exempt=True)[1] == []
    assert d.elapse(60) == []
    assert d.ask("poet", 10)[1] == ["refuse 3"]


def test_the_exempt_take_no_place_of_others() -> None:
    d = Driver(budget=10, max_queued=1).set("scribe", max_queued=1)
    d.ready("atlas", 10)
    d.ask("scribe", 10, exempt=True)
    assert d.ask("scribe", 10)[1] == []


def test_who_comes_in_mid_load_is_told_what_is_left_of_the_time_that_the_last_one_took() -> None:
    d = Driver(budget=10, max_queued=1)
    d.ask("atlas", 10)
    d.elapse(19)
    d.loaded("atlas", 10)
    d.leave(1)
    d.withdraw("atlas")
    d.unloaded("atlas")
    d.ask("atlas")
    d.elapse(4)
    ticket, _ = d.ask("atlas")
    error = d.errors[ticket]
    assert isinstance(error, QueueFull)
    assert error.retry_after == 15


# Searching, which may be downloading


def test_a_search_is_shared_by_all_who_wait_and_ended_when_nobody_does() -> None:
    d = Driver(budget=10)
    d.elsewhere.add("far")
    assert d.ask("far")[1] == ["locate far"]
    second, said = d.ask("far")
    assert (said, d.why[second]) == ([], "its files are looked for")
    assert d.leave(1) == []
    assert d.leave(second) == ["cancel locate far"]
    assert repr(d) == "<Residency 0 B of 10 B | no residents | 0 queued>"


def test_a_search_that_fails_fails_all_who_wait_for_it() -> None:
    d = Driver(budget=10)
    d.elsewhere.add("far")
    d.ask("far")
    d.ask("far")
    assert d.not_located("far") == ["refuse 1", "refuse 2"]
    assert isinstance(d.errors[1], LoadFailed)


def test_a_search_holds_up_no_other_model() -> None:
    d = Driver(budget=10)
    d.elsewhere.add("far")
    d.ask("far")
    assert d.ask("near", 10)[1] == ["load near"]


def test_a_download_that_stands_still_is_given_up() -> None:
    d = Driver(budget=10, load_timeout=60.0)
    d.elsewhere.add("far")
    ticket, _ = d.ask("far")
    assert d.elapse(60) == ["cancel locate far", f"refuse {ticket}"]
    assert str(d.errors[ticket]) == "loading far did not get any further for 1m"


def test_what_is_found_too_large_is_refused() -> None:
    d = Driver(budget=10)
    d.elsewhere.add("far")
    ticket, _ = d.ask("far")
    assert d.located("far", 11) == [f"refuse {ticket}"]
