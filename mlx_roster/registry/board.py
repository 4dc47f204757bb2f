"""All that the state machine knows, and the single moves on it. What to do when is decided in `state` and `room`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from mlx_roster.errors import RosterError
from mlx_roster.registry import events
from mlx_roster.registry.events import Action
from mlx_roster.registry.ledger import Ledger
from mlx_roster.registry.policy import Policy, Terms
from mlx_roster.registry.queue import Line, Queue, Search, Waiter
from mlx_roster.registry.record import Record
from mlx_roster.registry.resident import Resident, State

#: From here on, the records of models that nothing is going on with are dropped.
MANY_RECORDS = 4096


@dataclass(frozen=True, slots=True)
class Holder:
    """A lease: what it is on, since when, how long its request wants the model to stay afterwards, and whose it is."""

    resident: Resident
    since: float
    keep_alive: float | None
    client: str | None = None


class Board:
    """The whole state. Its moves put what must be done about them into `actions`."""

    def __init__(self, policy: Policy, terms: Mapping[str, Terms]) -> None:
        self.policy = policy
        self.terms = terms
        #: The time of the event that is being handled.
        self.at = 0.0
        #: Whether anything has changed for those who wait since they were last looked at, and when that was.
        self.stirred = False
        self.looked = 0.0
        self.actions: list[Action] = []
        self.ledger = Ledger(self.due)
        #: What was free when all workers were last told their shares.
        self.free: int | None = None
        self.queue = Queue()
        self.records: dict[str, Record] = {}
        self.holders: dict[int, Holder] = {}
        self.searches: dict[int, Line] = {}
        self._jobs = 0

    # Waiting

    def enqueue(self, waiter: Waiter, record: Record, priority: int) -> Line:
        line = self.queue.put(waiter, record, priority)
        self.search(line)
        self.stirred = True
        return line

    def search(self, line: Line) -> None:
        """Have its files looked for, where it is not known what they will take."""
        if line.record.size is not None or line.search is not None or self.ledger.current(line.model) is not None:
            return
        self._jobs += 1
        line.search = Search(self._jobs, self.at)
        self.searches[self._jobs] = line
        self.actions.append(events.Locate(line.model, self._jobs))

    def found(self, job: int) -> Line | None:
        """The search `job` has ended by itself."""
        line = self.searches.pop(job, None)
        if line is not None:
            line.search, line.resumed = None, self.at
            self.stirred = True
        return line

    def end_search(self, line: Line, stalled: str | None = None) -> None:
        if line.search is not None:
            self.actions.append(events.CancelLocate(line.search.job, stalled))
            self.found(line.search.job)

    def leave(self, ticket: int) -> bool:
        """Out of the queue. A search or a load goes on while anybody waits for it, and ends when nobody does."""
        taken = self.queue.take(ticket)
        if taken is None:
            return False
        _, line = taken
        if not line.waiters:
            self.end_search(line)
            resident = self.ledger.current(line.model)
            if resident is not None and resident.state is State.LOADING:
                self.stop_load(resident, "nobody waits for it")
            self.stirred = True
        return True

    def unplaced(self, resident: Resident) -> int:
        """How many have a lease of it, and no place in its batch yet."""
        # Asked of every Resident, and terms may be made anew for each answer.
        terms = self.terms.get(resident.model) if resident.leases else None
        return 0 if terms is None else max(0, len(resident.leases) - terms.max_concurrency)

    @property
    def queued(self) -> int:
        """How many requests wait, as `max_queued` counts them: for a model, or for a place in its batch."""
        return self.queue.counted + sum(map(self.unplaced, self.ledger))

    def refuse(self, waiter: Waiter, error: RosterError) -> None:
        self.actions.append(events.Refuse(waiter.ticket, waiter.model, error))
        self.leave(waiter.ticket)

    def refuse_all(self, model: str, error: RosterError) -> None:
        """Nobody waits for `model` any more. A load of it is left to whoever calls this."""
        line = self.queue.lines.get(model)
        if line is None:
            return
        self.end_search(line)
        for ticket in list(line.waiters):
            self.queue.take(ticket)
            self.actions.append(events.Refuse(ticket, model, error))
        self.stirred = True

    def grant(self, ticket: int, keep_alive: float | None, client: str | None, resident: Resident) -> None:
        self.queue.take(ticket)
        resident.leases.add(ticket)
        self.ledger.touch(resident)
        self.holders[ticket] = Holder(resident, self.at, keep_alive, client)
        self.actions.append(events.Grant(ticket, resident.serial))

    # Residents

    def admit(self, line: Line, size: int) -> Resident:
        """Reserve `size` bytes for a load."""
        terms = self.terms[line.model]
        resident = self.ledger.add(line.record, size, terms, pinned=self.pinned(line.record, terms))
        self.stirred = True
        return resident

    def move(self, resident: Resident, to: State, why: str) -> None:
        resident.move(to, self.at, why)
        self.touch(resident)

    def touch(self, resident: Resident) -> None:
        """Its state or its bytes are others than before."""
        self.ledger.touch(resident)
        self.stirred = True

    def start(self, resident: Resident) -> None:
        resident.started = resident.progressed = self.at
        resident.record.note(self.at, "load started")
        self.ledger.touch(resident)
        self.actions.append(events.StartLoad(resident.model, resident.serial, resident.size))

    def stop_load(self, resident: Resident, why: str, *, stalled: bool = False) -> None:
        line = self.queue.lines.get(resident.model)
        if resident.started is None:
            self.move(resident, State.GONE, why)
        else:
            self.move(resident, State.UNLOADING, why)
            self.actions.append(events.CancelLoad(resident.serial, why, stalled))
            if line is not None:
                line.resumed = self.at
        if line is not None:
            self.search(line)

    def retire(self, resident: Resident, why: str) -> None:
        """Let one go that stays: at once where nobody uses it, else after its last lease."""
        if resident.state is State.LOADING:
            self.stop_load(resident, why)
        elif resident.leases:
            resident.progressed = self.at
            self.move(resident, State.DRAINING, why)
            self.actions.append(events.Drain(resident.serial, why))
        else:
            self.unload(resident, why)

    def unload(self, resident: Resident, why: str) -> None:
        """Nobody uses it."""
        self.move(resident, State.UNLOADING, why)
        if not resident.cut:
            self.actions.append(events.Unload(resident.serial, why))

    def cut(self, resident: Resident, error: RosterError, *, hangs: bool = False) -> None:
        """It is on its way out, and is waited for no longer."""
        if not resident.cut:
            resident.cut = True
            self.ledger.touch(resident)
            resident.record.note(self.at, f"cut: {error}")
            self.actions.append(events.Cut(resident.serial, error, hangs))

    def due(self, resident: Resident) -> float:
        """When `resident` is to be looked after, if nothing is heard of it until then."""
        match resident.state:
            case State.LOADING if resident.started is not None:
                return resident.progressed + self.policy.load_timeout
            case State.DRAINING if not resident.cut:
                return min(resident.progressed + self.policy.drain_timeout, self.hangs_from(resident))
            case State.READY if not resident.leases and not resident.pinned:
                return min(resident.idle_since + resident.keep, self.hangs_from(resident))
            case State.READY:
                return self.hangs_from(resident)
        return math.inf

    def hangs_from(self, resident: Resident) -> float:
        """When its worker will have got nowhere for too long, if it goes on like that."""
        return math.inf if resident.awaited is None else resident.awaited + self.policy.stall_timeout

    def gone(self, resident: Resident, why: str) -> None:
        """Its memory is back. Whoever has a lease on it still holds nothing from here on."""
        self.move(resident, State.GONE, why)
        for ticket in resident.leases:
            del self.holders[ticket]

    # Records

    def record(self, model: str, terms: Terms) -> Record:
        record = self.records.get(model)
        if record is None:
            if len(self.records) >= MANY_RECORDS:
                self._forget()
            record = self.records[model] = Record(model, terms.version, terms.sizing, terms.pin)
        return record

    def _forget(self) -> None:
        for model, record in list(self.records.items()):
            used = model in self.queue.lines or self.ledger.current(model) or self.ledger.departing(model)
            if not used and record.cools_until <= self.at and record.pinned is None:
                del self.records[model]

    def pinned(self, record: Record, terms: Terms) -> bool:
        return terms.pin if record.pinned is None else record.pinned
