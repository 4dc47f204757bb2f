"""Who gets in, and who makes room for it. The rules of docs/scheduling.md, in their order."""

from __future__ import annotations

from mlx_roster.config import format_bytes
from mlx_roster.errors import ModelTooLarge
from mlx_roster.registry import events
from mlx_roster.registry.board import Board
from mlx_roster.registry.eviction import Candidate, victims
from mlx_roster.registry.queue import Line
from mlx_roster.registry.record import Record
from mlx_roster.registry.resident import Resident, State

#: A worker's share is told anew when it is off by this part of the budget.
SHARE_STEP = 1 / 64


def advance(board: Board) -> None:
    """Look at everything that waits, and do what has become possible."""
    board.stirred, board.looked = False, board.at
    _shrink(board)
    if board.queue.lines:
        _refuse_hopeless(board)
        while (found := next_in(board)) is not None:
            _make_room(board, *found)
    _start(board)
    _share(board)


def too_large(board: Board, record: Record, size: int) -> ModelTooLarge | None:
    """Why a model of `size` bytes cannot be loaded however long it waits, if that is so."""
    budget = board.policy.budget
    if size > budget:
        needs = f"{record.model} needs {format_bytes(size)} and the memory budget is {format_bytes(budget)}"
        return ModelTooLarge(needs, param="model")
    pinned = [one for one in board.ledger.current_ones() if one.pinned and one.model != record.model]
    if pinned and size + sum(one.entitled for one in pinned) > budget:
        blockers = ", ".join(f"{one.model} ({format_bytes(one.entitled)})" for one in pinned)
        said = (
            f"{record.model} needs {format_bytes(size)} of a budget of {format_bytes(budget)}, "
            "of which pinned models have the rest"
        )
        others = tuple(one.model for one in pinned)
        return ModelTooLarge(f"{said}: {blockers}", param="model", others=others, discreetly=said)
    return None


def _shrink(board: Board) -> None:
    """What is measured can overrun the budget: admitted loads that have not begun go back to the queue, and then the
    idle give way, all of them if need be."""
    excess = board.ledger.committed - board.policy.budget
    if excess <= 0:
        return
    for resident in board.ledger.pending():
        board.stop_load(resident, "what others take has grown")
    idle = board.ledger.idle()
    excess = board.ledger.committed - board.policy.budget
    chosen = victims(idle, excess)
    for victim in idle if chosen is None else chosen:
        board.retire(board.ledger[victim.serial], f"evicted: {format_bytes(excess)} over the budget")


def _refuse_hopeless(board: Board) -> None:
    for line in list(board.queue.lines.values()):
        size = line.record.size
        if size is not None and not _served(board, line) and (error := too_large(board, line.record, size)) is not None:
            board.refuse_all(line.model, error)


def next_in(board: Board) -> tuple[Line, int, list[Candidate]] | None:
    """The first Line whose model can be admitted now, with its bytes and with who makes room for it."""
    reserved, barrier = 0, 0
    idle = board.ledger.idle()
    most = sum(candidate.size for candidate in idle)
    for line, overdue in board.queue.ordered(board.at, board.policy.max_wait):
        size = line.record.size
        if size is None or _served(board, line):
            continue
        held_up = reserved and reserved + size + _newcomers(board, barrier) > board.policy.budget
        if not held_up and not _replaced(board, line):
            chosen = _victims(board, idle, most, size, overdue=overdue)
            if chosen is not None:
                return line, size, chosen
        if overdue:
            # What it waits for goes to nobody behind it.
            line.barrier = line.barrier or board.ledger.last_serial
            barrier = min(barrier or line.barrier, line.barrier)
            reserved += size
    return None


def _served(board: Board, line: Line) -> bool:
    return line.search is not None or board.ledger.current(line.model) is not None


def _replaced(board: Board, line: Line) -> bool:
    """Whether the model is just being unloaded, and not because its entry has changed: it comes back after that."""
    version = board.terms[line.model].version
    return any(resident.version == version for resident in board.ledger.departing(line.model))


def _newcomers(board: Board, barrier: int) -> int:
    """Bytes of those that will not make room soon: the pinned, and what was admitted after somebody was held up."""
    return sum(one.size for one in board.ledger.current_ones() if one.pinned or one.serial > barrier)


def _victims(board: Board, idle: list[Candidate], most: int, size: int, *, overdue: bool) -> list[Candidate] | None:
    """Who makes room for `size` bytes: of the idle, who have `most`, or for one who has waited too long of the busy."""
    need = board.ledger.committed + size - board.policy.budget
    if need <= most:
        return victims(idle, need)
    return victims(board.ledger.closable(board.at), need) if overdue else None


def _make_room(board: Board, line: Line, size: int, chosen: list[Candidate]) -> None:
    for victim in chosen:
        board.retire(board.ledger[victim.serial], f"evicted for {line.model}, which needs {format_bytes(size)}")
    resident = board.admit(line, size)
    resident.record.note(board.at, f"admitted with {format_bytes(size)}")


def _start(board: Board) -> None:
    """Start the admitted loads whose memory has come free. What an earlier one waits for is kept for it."""
    ahead = 0
    for resident in board.ledger.pending():
        room = board.ledger.held + ahead + resident.size <= board.policy.budget
        if room and not any(board.ledger.get(serial) for serial in resident.awaits):
            board.start(resident)
        else:
            ahead += resident.size


def _share(board: Board) -> None:
    """Tell the workers what they may take: what is theirs, and what nobody has or is promised."""
    ledger, budget = board.ledger, board.policy.budget
    promised = sum(one.size for one in ledger.pending())
    free = budget - ledger.held - promised
    # As long as there is about as much as before, only those have to be told of whom something has changed.
    alike = board.free is not None and min(free, board.free) >= 0 and abs(free - board.free) <= budget * SHARE_STEP / 2
    if not alike:
        board.free = free
    shared = [one for serial in ledger.touched if (one := ledger.get(serial))] if alike else list(ledger)
    ledger.touched.clear()
    for resident in shared:
        if resident.state not in (State.READY, State.DRAINING) or resident.cut:
            continue
        share = max(resident.size, resident.taken - max(0, -free)) + max(0, free)
        if resident.share is None or _differs(resident, share, budget):
            resident.share = share
            board.actions.append(events.Share(resident.serial, share))


def _differs(resident: Resident, share: int, budget: int) -> bool:
    told = resident.share or 0
    must_shed = share < told and share < resident.taken
    return must_shed or abs(share - told) > budget * SHARE_STEP
