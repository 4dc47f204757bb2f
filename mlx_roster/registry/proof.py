"""What must hold of the state after every event. Looked at in tests, and by whoever doubts it."""

from __future__ import annotations

import math
from collections import Counter

from mlx_roster.registry.board import Board
from mlx_roster.registry.resident import State
from mlx_roster.registry.room import next_in, too_large


def validate(board: Board) -> None:
    """Raise AssertionError where an invariant is broken."""
    _residents(board)
    _leases(board)
    _queue(board)
    _bytes(board)
    _nobody_is_forgotten(board)


def _residents(board: Board) -> None:
    ledger = board.ledger
    staying = {one.model: one for one in ledger if one.stays}
    assert len(staying) == sum(one.stays for one in ledger), f"a model is resident twice: {list(ledger)}"
    assert staying == {one.model: one for one in ledger.current_ones()}, "the index of models is off"
    pending = [one for one in ledger if one.state is State.LOADING and one.started is None]
    assert ledger.pending() == pending, "the index of admitted loads is off"
    assert ledger.leaving == any(not one.stays for one in ledger), "the index of those that leave is off"
    assert ledger.next_due == min(map(board.due, ledger), default=math.inf), "the heap of dues is off"
    for one in ledger:
        assert one.state is not State.GONE, f"{one} is gone and still listed"
        assert not one.stays or one.version == board.terms[one.model].version, f"{one} is of another roster"
        assert one.state is not State.DRAINING or one.leases or one.cut, f"{one} drains nothing"


def _leases(board: Board) -> None:
    for one in board.ledger:
        assert not one.leases or one.state in (State.READY, State.DRAINING), f"a lease on {one}"
    held = {ticket: one for one in board.ledger for ticket in one.leases}
    assert held == {ticket: holder.resident for ticket, holder in board.holders.items()}, "leases are off"


def _queue(board: Board) -> None:
    waiting = [ticket for line in board.queue.lines.values() for ticket in line.waiters]
    assert sorted(waiting) == sorted(board.queue), "the index of tickets is off"
    assert not board.holders.keys() & set(waiting), "a ticket waits and holds a lease"
    counted = sum(not waiter.exempt for line in board.queue.lines.values() for waiter in line.waiters.values())
    assert counted == board.queue.counted, "the count of waiters is off"
    waiters = [waiter for line in board.queue.lines.values() for waiter in line.waiters.values()]
    clients = Counter(one.client for one in waiters if one.client is not None and not one.exempt)
    assert clients == board.queue.clients, "the counts of clients are off"
    assert 0 not in board.queue.clients.values(), "a client is counted that does not wait"
    searching = {line.search.job: line for line in board.queue.lines.values() if line.search is not None}
    assert searching == board.searches, "a search that nobody waits for"
    for line in board.queue.lines.values():
        assert line.waiters, f"an empty line for {line.model}"
        assert line.model in board.terms, f"somebody waits for {line.model}, which is not in the roster"
        resident = board.ledger.current(line.model)
        assert resident is None or resident.state is State.LOADING, f"somebody waits for {resident}"
        assert resident is None or line.search is None, f"{resident} is searched for as it loads"
    for one in board.ledger.current_ones():
        assert one.state is not State.LOADING or board.queue.waiting(one.model), f"nobody waits for {one}"


def _bytes(board: Board) -> None:
    ledger, budget = board.ledger, board.policy.budget
    assert ledger.committed == sum(one.size for one in ledger if one.stays), "committed bytes are off"
    assert ledger.held == sum(one.taken for one in ledger), "held bytes are off"
    over = ledger.committed > budget
    assert not (over and ledger.idle()), f"over budget beside an idle Resident: {list(ledger)}"
    assert not (over and ledger.pending()), f"a load is admitted that does not fit: {list(ledger)}"
    spare = any(one.spare for one in ledger)
    stuck = ledger.pending() and not ledger.leaving and not spare
    assert not stuck, f"an admitted load waits for nothing: {list(ledger)}"


def _nobody_is_forgotten(board: Board) -> None:
    """Whoever waits is looked for, loading, or kept out by what may not be evicted."""
    for line in board.queue.lines.values():
        size = line.record.size
        if board.ledger.current(line.model) is None and line.search is None:
            assert size is not None, f"nobody looks for {line.model}"
            assert too_large(board, line.record, size) is None, f"{line.model} waits, and will never fit"
    if board.looked == board.at:
        admissible = next_in(board)
        assert admissible is None, f"{admissible[0].model} waits although there is room: {list(board.ledger)}"
