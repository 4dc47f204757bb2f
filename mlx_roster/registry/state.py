"""Which models are resident: events in, actions out. No await, no clock, no I/O, no logging.

A request's ticket meets one of five outcomes at once: granted, joined to a load, starting a load, queued, refused.
docs/scheduling.md states the rules. Bytes are counted twice, because a departing Resident holds its memory until its
process is gone:

* *committed*: what the Residents that stay will take. A load is admitted only if this stays within the budget.
* *held*: what is taken right now, departures included. An admitted load starts only once this stays within the budget.

In both, room that a Resident may still need (for adapters, for what it is reserved to run) is taken.
"""

from __future__ import annotations

from collections.abc import Mapping

from mlx_roster.config import format_bytes
from mlx_roster.errors import Draining, LoadCooldown, ModelNotFound, RosterError
from mlx_roster.registry import deadlines, events, proof, room
from mlx_roster.registry.board import Board
from mlx_roster.registry.events import Action, Event
from mlx_roster.registry.forecast import why_it_waits
from mlx_roster.registry.limits import queue_full
from mlx_roster.registry.policy import Policy, Terms
from mlx_roster.registry.queue import Line, Waiter
from mlx_roster.registry.record import Record
from mlx_roster.registry.resident import Resident, State


class Residency:
    """The state machine. One owner, no locks; `validate` states what must hold after every event."""

    def __init__(self, policy: Policy, terms: Mapping[str, Terms]) -> None:
        self.board = Board(policy, terms)
        self._found: Line | None = None

    def __repr__(self) -> str:
        ledger = self.board.ledger
        used = f"{format_bytes(ledger.held)} of {format_bytes(self.board.policy.budget)}"
        residents = ", ".join(map(repr, ledger)) or "no residents"
        return f"<Residency {used} | {residents} | {len(self.board.queue)} queued>"

    @property
    def wake(self) -> float:
        """When a Tick is due: the next moment at which time alone changes something. Infinite if there is none."""
        return deadlines.next_due(self.board)

    def validate(self) -> None:
        """Raise AssertionError where an invariant is broken. Called after every event in tests."""
        proof.validate(self.board)

    def handle(self, event: Event) -> list[Action]:
        """Take one event in; what must be done about it comes out, in order."""
        board = self.board
        board.at, board.actions, self._found = event.at, [], None
        self._take(event)
        # An expiry, a refusal, an eviction: each may make something possible for somebody.
        while board.stirred:
            room.advance(board)
        return [*self._queued(event), *board.actions]

    def _queued(self, event: Event) -> list[Action]:
        """Say why those wait who have just begun to: for anything, or for room."""
        board = self.board
        if isinstance(event, events.Acquire) and event.ticket in board.queue:
            why = why_it_waits(board, event.model)
            if board.queue.waiting(event.model) == 1:
                board.records[event.model].note(event.at, f"asked for: {why}")
            return [events.Queue(event.ticket, event.model, why)]
        line = self._found
        if line is not None and line.waiters and line.search is None and board.ledger.current(line.model) is None:
            why = why_it_waits(board, line.model)
            line.record.note(event.at, f"waiting: {why}")
            return [events.Queue(ticket, line.model, why) for ticket in line.waiters]
        return []

    def _take(self, event: Event) -> None:  # noqa: C901 - a line or two for each kind of event
        match event:
            case events.Acquire():
                self._acquire(event)
            case events.Leave():
                self._leave(event)
            case events.Located() | events.LocateFailed():
                self._located(event)
            case events.Loaded():
                self._loaded(event)
            case events.LoadFailed():
                self._load_failed(event)
            case events.Progressed() | events.LocateProgressed():
                self._progressed(event)
            case events.Reported():
                self._reported(event)
            case events.Died() | events.Unloaded():
                self._gone(event)
            case events.Pin():
                self._pin(event)
            case events.Withdraw():
                self._withdraw(event)
            case events.Configure():
                self._configure(event)
            case events.Tick():
                deadlines.expire(self.board)
                self.board.stirred = True

    # Requests

    def _acquire(self, event: events.Acquire) -> None:
        """Every ticket ends in exactly one of five ways:

        1. refuse: the model is unknown, cooling down or larger than it can ever have, or too many wait;
        2. grant: it is ready;
        3. join: it is loading, or its files are being looked for;
        4. load: it fits, perhaps after evicting idle Residents;
        5. queue: what is in the way is in use, or the model itself is on its way out.
        """
        board, model = self.board, event.model
        terms = board.terms.get(model)
        if terms is None:
            board.actions.append(events.Refuse(event.ticket, model, _removed(model)))
            return
        record, resident = board.record(model, terms), board.ledger.current(model)
        error = self._refusal(event, record, resident, terms)
        if error is not None:
            board.actions.append(events.Refuse(event.ticket, model, error))
        elif resident is not None and resident.state is State.READY:
            board.grant(event.ticket, event.keep_alive, event.client, resident)
        else:
            waiter = Waiter(event.ticket, model, event.at, event.keep_alive, event.exempt, event.client)
            board.enqueue(waiter, record, terms.priority)

    def _refusal(
        self, event: events.Acquire, record: Record, resident: Resident | None, terms: Terms
    ) -> RosterError | None:
        board = self.board
        if resident is None:
            if record.size is not None and (error := room.too_large(board, record, record.size)) is not None:
                return error
            if record.cools_until > event.at and not event.exempt:
                left = record.cools_until - event.at
                said = f"{record.model} is not loaded for another {left:.0f} s: {record.trouble}"
                return LoadCooldown(said, param="model", retry_after=left)
        # Who finds the model ready waits only if it has no place left.
        full = resident is None or resident.state is not State.READY or len(resident.leases) >= terms.max_concurrency
        return queue_full(board, event, terms) if full and not event.exempt else None

    def _leave(self, event: events.Leave) -> None:
        board = self.board
        if board.leave(event.ticket):
            return
        holder = board.holders.pop(event.ticket, None)
        if holder is None:
            return
        resident = holder.resident
        resident.leases.discard(event.ticket)
        resident.progressed = event.at
        resident.record.leased(event.at - holder.since)
        if resident.leases:
            board.ledger.touch(resident)
            return
        board.stirred = True
        if resident.state is State.DRAINING:
            board.unload(resident, "its last request has ended")
            return
        resident.idle_since = event.at
        resident.asked = holder.keep_alive is not None
        resident.keep = board.terms[resident.model].ttl if holder.keep_alive is None else holder.keep_alive
        if resident.keep <= 0 and not resident.pinned:
            board.unload(resident, "it is not to be kept after its last request")
        else:
            board.ledger.touch(resident)

    # Loads

    def _located(self, event: events.Located | events.LocateFailed) -> None:
        line = self.board.found(event.job)
        if line is None:
            return
        if isinstance(event, events.Located):
            line.record.size = line.record.estimate = event.estimate
            self._found = line
        else:
            line.record.failed(event.at, event.error.message)
            line.record.note(event.at, f"not to be had: {event.error}")
            self.board.refuse_all(line.model, event.error)

    def _loaded(self, event: events.Loaded) -> None:
        board, resident = self.board, self.board.ledger.get(event.serial)
        if resident is None or resident.state is not State.LOADING or resident.started is None:
            return  # it was cancelled at the same moment; Unloaded follows
        took = event.at - resident.started
        resident.measured, resident.growth, resident.spare = event.measured, event.growth, 0
        board.move(resident, State.READY, f"loaded in {took:.2f} s, {format_bytes(event.measured)} measured")
        resident.settled = resident.size
        resident.record.loaded(took, resident.size, resident.sizing)
        resident.loaded = resident.progressed = resident.idle_since = event.at
        resident.fresh_until = event.at + board.policy.residency(took)
        board.touch(resident)
        # Its waiters get their leases here, before anything can find it idle.
        line = board.queue.lines.get(resident.model)
        for waiter in list(line.waiters.values()) if line is not None else []:
            board.grant(waiter.ticket, waiter.keep_alive, waiter.client, resident)

    def _load_failed(self, event: events.LoadFailed) -> None:
        board, resident = self.board, self.board.ledger.get(event.serial)
        if resident is None:
            return
        if resident.state is State.LOADING:
            line = board.queue.lines[resident.model]
            idle = board.ledger.idle() if event.out_of_memory and not line.retried else []
            if idle:
                line.retried, line.resumed, resident.started = True, event.at, None
                resident.awaits = frozenset(candidate.serial for candidate in idle)
                resident.record.note(event.at, "out of memory; retries after evicting all that is idle")
                board.touch(resident)
                for candidate in idle:
                    board.retire(board.ledger[candidate.serial], f"evicted: {resident.model} ran out of memory")
                return
            resident.record.failed(event.at, event.error.message)
            board.refuse_all(resident.model, event.error)
        board.gone(resident, f"load failed: {event.error}")

    def _progressed(self, event: events.Progressed | events.LocateProgressed) -> None:
        if isinstance(event, events.Progressed):
            resident = self.board.ledger.get(event.serial)
            if resident is not None:
                resident.progressed = max(resident.progressed, event.since)
                resident.awaited = event.awaited
                self.board.ledger.touch(resident)
        else:
            line = self.board.searches.get(event.job)
            if line is not None and line.search is not None:
                line.search.progressed = max(line.search.progressed, event.since)

    # What becomes of Residents

    def _reported(self, event: events.Reported) -> None:
        resident = self.board.ledger.get(event.serial)
        if resident is not None and resident.state in (State.READY, State.DRAINING):
            resident.measured, resident.growth, resident.spare = event.measured, event.growth, event.spare
            self.board.touch(resident)

    def _gone(self, event: events.Died | events.Unloaded) -> None:
        resident = self.board.ledger.get(event.serial)
        if resident is None:
            return
        died = isinstance(event, events.Died)
        served = resident.state is State.READY or resident.state is State.DRAINING
        # What was wrong with an older version says nothing of this one.
        if died and served and not resident.cut and resident.version == resident.record.version:
            resident.record.crashed(event.at, event.at - resident.loaded)
        self.board.gone(resident, "its worker died" if died else "its memory is back")

    # Operators and the roster

    def _pin(self, event: events.Pin) -> None:
        board, terms = self.board, self.board.terms.get(event.model)
        if terms is None:
            return
        record, resident = board.record(event.model, terms), board.ledger.current(event.model)
        record.pinned = event.pinned
        record.note(event.at, "pinned by an operator" if event.pinned else "unpinned by an operator")
        if resident is not None:
            resident.pinned = event.pinned
            if resident.idle:
                resident.idle_since = event.at
            board.ledger.touch(resident)
        board.stirred = True

    def _withdraw(self, event: events.Withdraw) -> None:
        board, resident = self.board, self.board.ledger.current(event.model)
        error = Draining(f"{event.model} was unloaded by an operator", param="model")
        board.refuse_all(event.model, error)
        if resident is not None:
            board.retire(resident, "unloaded by an operator")
        for leaving in board.ledger.departing(event.model) if event.force else []:
            if leaving.state is State.DRAINING:
                board.cut(leaving, error)

    def _configure(self, event: events.Configure) -> None:
        board = self.board
        board.policy, board.terms, board.stirred = event.policy, event.terms, True
        for model, record in list(board.records.items()):
            terms = event.terms.get(model)
            if terms is None:
                self._remove(model)
            else:
                self._follow(record, terms)
        # Its time may be another now, and its share.
        for resident in board.ledger:
            board.ledger.touch(resident)
        board.free = None

    def _remove(self, model: str) -> None:
        board, resident = self.board, self.board.ledger.current(model)
        board.refuse_all(model, _removed(model))
        if resident is not None:
            board.retire(resident, "it is no longer in the roster")
        del board.records[model]

    def _follow(self, record: Record, terms: Terms) -> None:
        """What is loaded, loading or looked for goes on where it is what the entry describes now."""
        board, resident = self.board, self.board.ledger.current(record.model)
        line = board.queue.lines.get(record.model)
        replaced, resized = terms.version != record.version, terms.sizing != record.sizing
        record.follow(terms)
        if line is not None and (replaced or resized):
            board.end_search(line)
        if resident is not None and replaced:
            board.retire(resident, "its entry has changed")
        elif resident is not None and resized and resident.state is State.LOADING and resident.started is None:
            board.stop_load(resident, "what it will take has changed")
        elif resident is not None:
            resident.pinned = board.pinned(record, terms)
            if not resident.asked:
                resident.keep = terms.ttl
        if line is not None:
            line.priority = terms.priority
            board.search(line)


def _removed(model: str) -> ModelNotFound:
    return ModelNotFound(f"{model} is no longer in the roster", param="model")
