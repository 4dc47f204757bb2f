"""What can be said to those who wait: why, and how long it will take. Guesses, from what is known."""

from __future__ import annotations

import math
from collections.abc import Iterable

from mlx_roster.registry.board import Board
from mlx_roster.registry.record import Record
from mlx_roster.registry.resident import Resident, State

#: Seconds, where nothing has been measured yet.
UNKNOWN_LOAD = 5.0
UNKNOWN_LEASE = 5.0

#: What a client may be told to wait, in seconds.
SOONEST, LATEST = 1.0, 300.0


def retry_after(board: Board, model: str) -> float:
    """Seconds after which a request for `model` that is refused now may be served."""
    resident = board.ledger.current(model)
    if resident is not None and resident.state is State.READY:
        guess = _until_place(board, resident)
    elif resident is not None and resident.started is not None:
        guess = _load_time(resident.record) - (board.at - resident.started)
    else:
        guess = _until_loaded(board, model)
    return min(max(guess, SOONEST), LATEST)


def _until_place(board: Board, resident: Resident) -> float:
    """All who have a lease on it are served in turns of so many at once."""
    places = board.terms[resident.model].max_concurrency
    turns = math.ceil(len(resident.leases) / places)
    return turns * (resident.record.lease_time or UNKNOWN_LEASE)


def _until_loaded(board: Board, model: str) -> float:
    """The loads of those ahead of it, its own, and the time until what is in the way is closed."""
    policy, seconds = board.policy, 0.0
    line = board.queue.lines.get(model)
    for ahead, _ in board.queue.ordered(board.at, policy.max_wait):
        if ahead is line:
            break
        seconds += _load_time(ahead.record)
    record = board.records.get(model)
    seconds += _load_time(record) if record is not None else UNKNOWN_LOAD
    busy = [one.fresh_until for one in board.ledger.current_ones() if one.leases]
    since = board.at if line is None else line.since
    closable = max(since + policy.max_wait, min(busy)) if busy else board.at
    return seconds + max(0.0, closable - board.at)


def _load_time(record: Record) -> float:
    return UNKNOWN_LOAD if record.load_time is None else record.load_time


def why_it_waits(board: Board, model: str) -> str:
    """For people: what a request that has just come for `model` waits for."""
    line = board.queue.lines[model]
    resident = board.ledger.current(model)
    if line.search is not None:
        return "its files are looked for"
    if resident is not None:
        if resident.started is None:
            return "its load waits for memory that is coming free"
        return "it is loading"
    if board.ledger.departing(model):
        return "it is being unloaded"
    return f"in the way: {described(in_the_way(board, model))}"


def in_the_way(board: Board, model: str) -> list[Resident]:
    """The Residents that others use or are promised, and so keep `model` out."""
    current = board.ledger.current(model)
    return [one for one in board.ledger if one is not current]


def described(residents: Iterable[Resident]) -> str:
    """What is in the way, for people."""
    return ", ".join(map(_described, residents)) or "nothing any more"


def _described(resident: Resident) -> str:
    uses = len(resident.leases)
    running = f", {uses} running" if uses else ""
    return f"{resident.model} ({'pinned, ' if resident.pinned else ''}{resident.state.value}{running})"
