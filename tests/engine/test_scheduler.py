"""Who runs, who waits, and which adapter lies in which slot: decisions only."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_roster.core import AdapterSource, Delta, FinishReason, Sampling, Usage
from mlx_roster.engine.prompts import Prompt
from mlx_roster.engine.scheduler import OVERTAKES, Plan, Scheduler
from mlx_roster.engine.sequences import Adapter, Cancel, Fetched, Rejection, Sequence, Token
from mlx_roster.engine.slots import Slots
from mlx_roster.engine.text import TextStream
from mlx_roster.errors import InvalidRequest
from mlx_roster.tensors import AdapterWeights


class Letters:
    """Token 0 is "a", 1 is "b", …"""

    def add(self, token: int) -> str:
        return chr(97 + token)

    def finish(self) -> str:
        return ""


def adapter(name: str, *, read: bool = True, pin: bool = False) -> Adapter:
    weights = AdapterWeights(name, name, {}, {}, 0) if read else None
    return Adapter(name, AdapterSource(name, f"/{name}", pin), weights)


def sequence(number: int, over: Adapter | None = None, stop: tuple[str, ...] = ()) -> Sequence:
    return Sequence(number, Prompt.of([1, 2, 3]), 10, Sampling(), TextStream(Letters(), stop), over)


def scheduler(*sequences: Sequence, running: int = 4, slots: int = 2) -> Scheduler:
    scheduler = Scheduler(running, slots)
    for one in sequences:
        scheduler.apply(one)
    return scheduler


def ids(sequences: Iterable[Sequence]) -> list[int]:
    return [one.id for one in sequences]


def test_sequences_run_in_order_of_arrival_up_to_the_limit() -> None:
    it = scheduler(*map(sequence, range(6)))
    assert ids(it.schedule().admit) == [0, 1, 2, 3]
    assert ids(it.schedule().admit) == []
    it.fold([Token(1, 0, "length")])
    assert ids(it.schedule().admit) == [4]
    assert repr(it) == "<Scheduler: 4 running, 1 waiting | <Slots: 2 free, idle [], leased {}>>"


def test_limit_that_changes_holds_for_who_comes_next() -> None:
    it = scheduler(*map(sequence, range(6)), running=2)
    assert ids(it.schedule().admit) == [0, 1]
    it.max_concurrency = 3
    assert ids(it.schedule().admit) == [2]
    it.max_concurrency = 1
    it.fold([Token(0, 0, "length"), Token(1, 0, "length")])
    assert ids(it.schedule().admit) == []
    it.fold([Token(2, 0, "length")])
    assert ids(it.schedule().admit) == [3]


class Places:
    """Room for so many, by a measure of their own."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.asked: list[tuple[int, list[int]]] = []

    def __call__(self, one: Sequence, running: Collection[Sequence]) -> bool:
        self.asked.append((one.id, ids(running)))
        return len(running) < max(self.count, 1)


def test_one_that_there_is_no_room_for_is_overtaken_by_none() -> None:
    places = Places(2)
    it = Scheduler(4, 2, places)
    for one in (sequence(0), sequence(1, adapter("x")), sequence(2, adapter("y")), sequence(3)):
        it.apply(one)
    assert ids(it.schedule().admit) == [0, 1]
    assert places.asked == [(0, []), (1, [0]), (2, [0, 1])]
    assert ids(it.schedule().admit) == []
    assert not it.idle
    it.fold([Token(0, 0, "stop")])
    places.count = 9
    assert ids(it.schedule().place) == [2]
    assert ids(it.schedule().admit) == [2, 3]


def test_one_alone_is_let_in_whatever_it_needs() -> None:
    it = Scheduler(4, 2, Places(0))
    for number in range(3):
        it.apply(sequence(number))
    for number in range(3):
        assert ids(it.schedule().admit) == [number]
        it.fold([Token(number, 0, "stop")])


def test_room_is_not_asked_for_by_who_waits_for_an_adapter() -> None:
    places = Places(9)
    it = Scheduler(4, 1, places)
    for one in (sequence(0, adapter("x")), sequence(1, adapter("late")), sequence(2, adapter("unread", read=False))):
        it.apply(one)
    assert ids(it.schedule().fetch) == [2]
    it.schedule()
    assert [number for number, _ in places.asked] == [0]


def test_idle_is_having_nothing_to_do() -> None:
    it = scheduler()
    assert it.idle
    it.apply(sequence(1))
    assert not it.idle
    it.schedule()
    assert not it.idle
    it.apply(Cancel(1))
    assert not it.idle, "the batch must still be told"
    assert it.schedule().drop == [1]
    assert it.idle


def test_cancelled_sequence_leaves_with_the_next_plan_and_says_nothing_more() -> None:
    it = scheduler(sequence(1), sequence(2))
    it.schedule()
    it.apply(Cancel(1))
    assert it.fold([Token(1, 0, None), Token(2, 0, None)]) == [Delta(2, "a")]
    assert it.schedule().drop == [1]
    assert it.schedule().drop == []


def test_cancelled_while_waiting_never_runs_and_unknown_ids_are_ignored() -> None:
    it = scheduler(sequence(1), sequence(2), running=1)
    it.schedule()
    it.apply(Cancel(2))
    it.apply(Cancel(99))
    it.fold([Token(1, 0, "stop")])
    it.apply(Cancel(1))
    assert it.schedule() == Plan(drop=[])
    assert it.idle


def test_deltas_carry_text_and_the_last_one_the_usage() -> None:
    it = scheduler(sequence(1))
    it.schedule()
    assert it.fold([Token(1, 7, None)]) == [Delta(1, "h")]
    assert it.fold([Token(1, 8, "length")]) == [Delta(1, "i", "length", Usage(3, 2))]
    assert it.idle


def test_usage_says_what_was_cached() -> None:
    it = scheduler(sequence(1))
    (admitted,) = it.schedule().admit
    admitted.cached = 2
    assert it.fold([Token(1, 8, "length")]) == [Delta(1, "i", "length", Usage(3, 1, 2))]


def test_end_of_sequence_token_is_counted_and_not_shown() -> None:
    it = scheduler(sequence(1))
    it.schedule()
    it.fold([Token(1, 7, None)])
    assert it.fold([Token(1, 25, "stop")]) == [Delta(1, "", "stop", Usage(3, 2))]


def test_stop_string_ends_a_sequence_that_the_batch_would_go_on_with() -> None:
    it = scheduler(sequence(1, stop=("bc",)))
    it.schedule()
    assert it.fold([Token(1, 0, None)]) == [Delta(1, "a")]
    assert it.fold([Token(1, 1, None)]) == [Delta(1, "")]
    assert it.fold([Token(1, 2, None)]) == [Delta(1, "", "stop", Usage(3, 3))]
    assert it.fold([Token(1, 3, None)]) == []
    assert it.schedule().drop == [1]


def test_stop_string_in_the_last_token_is_a_stop() -> None:
    it = scheduler(sequence(1, stop=("b",)))
    it.schedule()
    assert it.fold([Token(1, 1, "length")]) == [Delta(1, "", "stop", Usage(3, 1))]
    assert it.schedule().drop == []


def test_text_held_back_for_a_stop_string_is_flushed_at_the_end() -> None:
    it = scheduler(sequence(1, stop=("bcd",)))
    it.schedule()
    assert it.fold([Token(1, 1, None)]) == [Delta(1, "")]
    assert it.fold([Token(1, 2, "length")]) == [Delta(1, "bc", "length", Usage(3, 2))]


def test_adapter_is_placed_once_for_all_that_want_it() -> None:
    it = scheduler(sequence(1, adapter("x")), sequence(2, adapter("x")), sequence(3, adapter("y")))
    plan = it.schedule()
    assert (ids(plan.place), [one.slot for one in plan.admit]) == ([1, 3], [1, 1, 2])


def test_slot_is_not_reused_while_leased() -> None:
    it = scheduler(sequence(1, adapter("x")), sequence(2, adapter("y")), sequence(3, adapter("z")))
    assert ids(it.schedule().admit) == [1, 2]
    it.fold([Token(1, 0, None), Token(2, 0, None)])
    assert it.schedule() == Plan(drop=[])
    it.fold([Token(2, 0, "stop")])
    (placed,) = it.schedule().place
    assert (placed.id, placed.slot) == (3, 2)
    assert ids(it.schedule().admit) == [3]


def test_adapter_still_in_its_slot_is_not_placed_again() -> None:
    it = scheduler(sequence(1, adapter("x")))
    it.schedule()
    it.fold([Token(1, 0, "stop")])
    it.apply(sequence(2, adapter("x", read=False)))
    plan = it.schedule()
    assert (ids(plan.place), ids(plan.admit), plan.admit[0].slot) == ([], [2], 1)


def test_adapter_that_lost_its_slot_while_its_sequence_waited_is_fetched() -> None:
    it = scheduler(sequence(1, adapter("x", read=False)))
    plan = it.schedule()
    assert (ids(plan.fetch), ids(plan.admit)) == ([1], [])
    assert it.idle, "there is nothing to do until the adapter comes"
    assert it.schedule() == Plan(drop=[])
    it.apply(sequence(2, adapter("y")))
    it.apply(Fetched(1, adapter("x")))
    assert ids(it.schedule().admit) == [1, 2]


def test_cancelled_while_its_adapter_is_fetched_never_runs() -> None:
    it = scheduler(sequence(1, adapter("x", read=False)))
    it.schedule()
    it.apply(Cancel(1))
    it.apply(Fetched(1, adapter("x")))
    assert it.schedule() == Plan(drop=[])
    assert it.idle


def test_sequence_waiting_for_a_slot_is_overtaken_only_so_often() -> None:
    it = scheduler(sequence(0, adapter("x")), slots=1)
    it.schedule()
    it.apply(sequence(1, adapter("late")))
    number = 10
    overtakes = 0
    while True:
        it.apply(sequence(number, adapter("x", read=False)))
        admitted = ids(it.schedule().admit)
        if not admitted:
            break
        overtakes += 1
        it.fold([Token(number, 0, "stop")])
        number += 1
    assert overtakes == OVERTAKES
    it.apply(sequence(5))
    assert ids(it.schedule().admit) == [5], "who needs no slot may always pass"
    it.fold([Token(0, 0, "stop")])
    assert ids(it.schedule().place) == [1]


def test_step_fills_slots_or_takes_in_their_prompts_while_others_run() -> None:
    it = scheduler(sequence(1))
    it.schedule()
    it.apply(sequence(2, adapter("x")))
    it.apply(sequence(3))
    first, second = it.schedule(), it.schedule()
    assert (ids(first.place), ids(first.admit)) == ([2], [])
    assert (ids(second.place), ids(second.admit)) == ([], [2, 3])


def test_arrivals_do_not_hold_up_what_is_about_to_join() -> None:
    it = scheduler(sequence(1))
    it.schedule()
    it.apply(sequence(2, adapter("x")))
    it.schedule()
    it.apply(sequence(3, adapter("y")))
    plan = it.schedule()
    assert (ids(plan.place), ids(plan.admit)) == ([3], [2])


def test_sequence_cancelled_between_its_slot_and_its_prompt_is_gone() -> None:
    it = scheduler(sequence(1), slots=1)
    it.schedule()
    it.apply(sequence(2, adapter("x")))
    it.schedule()
    it.apply(Cancel(2))
    it.apply(sequence(3, adapter("y")))
    plan = it.schedule()
    assert (plan.drop, ids(plan.place), ids(plan.admit)) == ([], [3], [])


def test_adapter_that_cannot_be_placed_takes_along_who_is_about_to_join() -> None:
    it = scheduler(sequence(1))
    it.schedule()
    it.apply(sequence(2, adapter("bad")))
    it.apply(sequence(3))
    plan = it.schedule()
    assert [one.id for one in it.unplaced(plan, "bad")] == [2]
    assert ids(it.schedule().admit) == [3]


def test_adapter_that_cannot_be_placed_takes_only_its_own_sequences_along() -> None:
    it = scheduler(sequence(1, adapter("bad")), sequence(2, adapter("bad")), sequence(3), slots=1)
    plan = it.schedule()
    assert [one.id for one in it.unplaced(plan, "bad")] == [1, 2]
    assert ids(plan.admit) == [3]
    it.apply(sequence(4, adapter("good")))
    assert ids(it.schedule().place) == [4]


def test_abandon_forgets_all_that_runs_and_what_lies_in_the_slots() -> None:
    it = scheduler(sequence(1, adapter("x")), sequence(2), running=1)
    it.schedule()
    assert [one.id for one in it.abandon()] == [1]
    assert "x" not in it.slots
    assert ids(it.schedule().admit) == [2]


def test_least_recently_used_slot_goes_first() -> None:
    slots = Slots(2)
    for name in ("x", "y"):
        slots.lease(name)
    for name in ("x", "y"):
        slots.release(name)
    slots.lease("x")
    slots.release("x")
    assert slots.lease("z") == 2
    assert "y" not in slots
    assert "x" in slots


def test_pinned_adapter_keeps_its_slot_while_idle() -> None:
    slots = Slots(2)
    slots.lease("x", "mine")
    slots.release("x")
    for name in ("y", "z", "y"):
        assert slots.lease(name) == 2
        assert slots.lease("w") is None
        slots.release(name)
    assert "x" in slots
    assert slots.lease("x") == 1


def test_pin_moves_on_to_the_new_contents_of_its_name() -> None:
    slots = Slots(1)
    for identity in ("old", "new", "old"):
        assert slots.lease(identity, "mine") == 1
        slots.release(identity)
        assert slots.lease(identity, "mine") == 1
        slots.release(identity)


def test_identity_stays_pinned_while_any_name_pins_it() -> None:
    slots = Slots(3)
    for identity, name in (("x", "one"), ("x", "two"), ("y", "one"), ("busy", "three")):
        slots.lease(identity, name)
    for identity in ("x", "x", "y"):
        slots.release(identity)
    assert slots.lease("z") is None


def test_pins_give_way_where_nothing_would_ever_come_free() -> None:
    slots = Slots(1)
    slots.lease("x", "mine")
    assert slots.lease("y") is None
    slots.release("x")
    assert slots.lease("y") == 1


def test_what_was_pinned_is_idle_and_the_longest_so_goes_first() -> None:
    slots = Slots(3)
    for identity in ("x", "y", "busy"):
        slots.lease(identity, identity)
    for identity in ("x", "y"):
        slots.release(identity)
    slots.unpin()
    assert repr(slots) == "<Slots: 0 free, idle [1, 2], leased {3: 1}>"
    assert slots.lease("z") == 1
    assert "x" not in slots
    slots.release("busy")
    assert [slots.lease("w"), slots.lease("v")] == [2, 3]
    assert slots.full


def test_what_is_pinned_again_keeps_its_slot_again() -> None:
    slots = Slots(2)
    slots.lease("x", "mine")
    slots.release("x")
    slots.unpin()
    slots.lease("x", "mine")
    slots.release("x")
    assert [slots.lease("y"), slots.lease("z")] == [2, None]
    assert not slots.full


def test_sequence_of_a_pinned_adapter_pins_it() -> None:
    it = scheduler(sequence(1, adapter("x", pin=True)), sequence(2, adapter("y")))
    it.schedule()
    it.fold([Token(1, 5, "length")])
    it.apply(sequence(3, adapter("z")))
    plan = it.schedule()
    assert (ids(plan.place), ids(plan.admit)) == ([], [])


def test_without_slots_nothing_is_leased() -> None:
    assert Slots(0).lease("x") is None


@given(st.lists(st.tuples(st.booleans(), st.sampled_from("abcde")), max_size=60))
def test_slots_never_serve_two_adapters_at_once(events: list[tuple[bool, str]]) -> None:
    slots = Slots(3)
    leases: dict[str, list[int]] = {}
    for lease, name in events:
        if lease:
            slot = slots.lease(name)
            if slot is None:
                assert len(leases) == 3
                assert name not in leases
            else:
                leases.setdefault(name, []).append(slot)
        elif name in leases:
            slots.release(name)
            leases[name].pop()
            if not leases[name]:
                del leases[name]
        held: Any = [set(numbers) for numbers in leases.values()]
        assert all(len(numbers) == 1 for numbers in held)
        assert len(set().union(*held)) == len(held)


def test_one_request_of_many_lets_others_in_between() -> None:
    it = Scheduler(1, 0)
    for number in range(40):
        many = sequence(number)
        many.rank = number
        it.apply(many)
    for number in (100, 101):
        it.apply(sequence(number))
    order = []
    for _ in range(42):
        [one] = it.schedule().admit
        order.append(one.id)
        it.fold([Token(one.id, 0, "length")])
    # Of the many, as many go first as they would if each later one had come a little later; nobody is left waiting.
    assert order[:8] == [0, 1, 2, 3, 4, 100, 101, 5]
    assert [number for number in order if number < 100] == list(range(40))


class Broken:
    error = "too complex"
    param = "tools"


def test_grammar_that_gives_up_ends_its_sequence_unless_that_is_complete() -> None:
    for finish, said in ((None, Rejection), ("stop", Rejection), ("length", Delta)):
        one = sequence(1)
        one.gate = Broken()
        it = scheduler(one, sequence(2))
        it.schedule()
        first, second = it.fold([Token(1, 0, finish), Token(2, 0)])
        assert isinstance(first, said)
        if isinstance(first, Rejection):
            assert isinstance(first.error, InvalidRequest)
            assert (first.error.message, first.error.param) == ("too complex", "tools")
        assert second == Delta(2, "a")
        assert it.schedule().drop == ([] if finish == "length" else [1])


class Stumbling(Letters):
    def add(self, token: int) -> str:
        raise IndexError("no such token")


@pytest.mark.parametrize("finish", [None, "length"])
def test_text_that_cannot_be_made_ends_its_own_sequence_only(
    finish: FinishReason | None, caplog: pytest.LogCaptureFixture
) -> None:
    one = sequence(1)
    one.request = "mine"
    one.voice = TextStream(Stumbling(), ())
    it = scheduler(one, sequence(2))
    it.schedule()
    first, second = it.fold([Token(1, 0, finish), Token(2, 0)])
    assert isinstance(first, Rejection)
    assert first.request == "mine"
    assert second == Delta(2, "a")
    assert repr(it).startswith("<Scheduler: 1 running, 0 waiting")
    assert caplog.messages == ["the text of request mine could not be made"]
