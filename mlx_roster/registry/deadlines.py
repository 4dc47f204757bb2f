"""What time alone brings about: waits that have lasted too long, idle models, work that stands still."""

from __future__ import annotations

import math
from collections.abc import Iterator

from mlx_roster.config import format_duration
from mlx_roster.errors import Draining, LoadFailed, QueueTimeout, WorkerCrashed
from mlx_roster.registry.board import Board
from mlx_roster.registry.forecast import described, in_the_way, retry_after
from mlx_roster.registry.queue import Line
from mlx_roster.registry.resident import Resident, State


def next_due(board: Board) -> float:
    """When the next of these falls due; in the past where one has been missed. Infinite where there is none."""
    return min(board.ledger.next_due, min(_lines(board), default=math.inf))


def expire(board: Board) -> None:
    """Do what has fallen due."""
    for line in list(board.queue.lines.values()):
        _expire_line(board, line)
    if board.ledger.next_due > board.at:
        return
    for resident in list(board.ledger):
        if board.due(resident) <= board.at:
            _expire_resident(board, resident)


def _waits_for_room(board: Board, line: Line) -> bool:
    resident = board.ledger.current(line.model)
    return line.search is None and (resident is None or resident.started is None)


def _lines(board: Board) -> Iterator[float]:
    policy, impatient = board.policy, False
    for line in board.queue.lines.values():
        if line.search is not None:
            yield line.search.progressed + policy.load_timeout
        elif _waits_for_room(board, line):
            yield line.deadline(policy.queue_timeout)
            if board.ledger.current(line.model) is None:
                impatient = True
                if (overdue := line.since + policy.max_wait) > board.looked:
                    yield overdue
    if impatient:
        yield from (one.fresh_until for one in board.ledger.current_ones() if one.fresh_until > board.looked)


def _expire_line(board: Board, line: Line) -> None:
    timeout = board.policy.load_timeout
    if line.search is not None:
        if line.search.progressed + timeout <= board.at:
            stalled = _stalled(line.model, timeout)
            line.record.failed(board.at, stalled.message)
            board.end_search(line, stalled.message)
            board.refuse_all(line.model, stalled)
    elif _waits_for_room(board, line):
        for waiter in line.expired(board.at, board.policy.queue_timeout):
            waited = format_duration(round(board.at - waiter.since))
            blockers = in_the_way(board, line.model)
            said = f"{line.model} could not be loaded within {waited}"
            error = QueueTimeout(
                f"{said}; in the way: {described(blockers)}",
                param="model",
                retry_after=retry_after(board, line.model),
                others=tuple(one.model for one in blockers if one.model != line.model),
                discreetly=said,
            )
            board.refuse(waiter, error)


def _expire_resident(board: Board, resident: Resident) -> None:
    if resident.state is State.LOADING:
        error = _stalled(resident.model, board.policy.load_timeout)
        resident.record.failed(board.at, error.message)
        board.refuse_all(resident.model, error)
        board.stop_load(resident, error.message, stalled=True)
    elif board.hangs_from(resident) <= board.at:
        _replace(board, resident)
    elif resident.state is State.DRAINING:
        waited = format_duration(board.policy.drain_timeout)
        board.cut(resident, Draining(f"{resident.model} is going away, and has said nothing for {waited}"))
    else:
        board.unload(resident, f"idle for {format_duration(resident.keep)}, its ttl")


def _replace(board: Board, resident: Resident) -> None:
    """Its worker hangs: whoever uses it is told so, and who comes has it loaded anew."""
    silent = format_duration(board.policy.stall_timeout)
    error = WorkerCrashed(f"the worker of {resident.model} hung: it got nowhere for {silent}, and is replaced")
    if resident.version == resident.record.version:
        # What it lived, not what it hung: else it would never have died of being loaded.
        resident.record.crashed(board.at, (resident.awaited or board.at) - resident.loaded)
    if resident.state is State.READY:
        board.move(resident, State.DRAINING if resident.leases else State.UNLOADING, "its worker hangs")
    board.cut(resident, error, hangs=True)


def _stalled(model: str, timeout: float) -> LoadFailed:
    return LoadFailed(f"loading {model} did not get any further for {format_duration(timeout)}")
