"""Which models are resident: events in, actions out. No await, no clock, no I/O, no logging.

A request's ticket meets one of five outcomes at once: granted, joined to a load, starting a load, queued, refused.
The queue is collated: whenever a model becomes ready, all who wait for it are served, whatever their place.

Bytes are counted twice, because a departing Resident holds its memory until its process is gone:

* *committed*: what the Residents that stay will take. A load is admitted only if this stays within the budget.
* *held*: what is taken right now, departures included. An admitted load starts only once this stays within the budget.

In both, room that a Resident's adapters may still need is taken: they are let in without asking here.
"""

from __future__ import annotations

from dataclasses import dataclass

from mlx_roster.config import format_bytes
from mlx_roster.errors import ModelTooLarge, RosterError
from mlx_roster.registry.events import (
    Acquire,
    Action,
    CancelLoad,
    Died,
    Event,
    Grant,
    Leave,
    Loaded,
    LoadFailed,
    Refuse,
    Reported,
    StartLoad,
    Unload,
    Unloaded,
)
from mlx_roster.registry.eviction import Candidate, victims
from mlx_roster.registry.resident import Resident, State


@dataclass(frozen=True, slots=True)
class Waiter:
    """A ticket in the queue."""

    ticket: int
    model: str
    estimate: int
    since: float


class Residency:
    """The state machine. One owner, no locks; `validate` states what must hold after every event."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        # All mutable state: the Residents by serial, the queue in order of arrival, who holds which lease,
        # and what each model took, growth included, when it was last loaded.
        self.residents: dict[int, Resident] = {}
        self.queue: dict[int, Waiter] = {}
        self._holders: dict[int, Resident] = {}
        self._sizes: dict[str, int] = {}
        self._serials = 0

    # Readings

    @property
    def committed(self) -> int:
        return sum(r.size for r in self.residents.values() if r.state is not State.UNLOADING)

    @property
    def held(self) -> int:
        return sum(r.size for r in self.residents.values() if r.started)

    def resident(self, model: str) -> Resident | None:
        """The model's Resident that is loading or ready; one on its way out only if there is no other."""
        found = None
        for resident in self.residents.values():
            if resident.model == model:
                if resident.state is not State.UNLOADING:
                    return resident
                found = resident
        return found

    def waiting(self, model: str) -> int:
        """How many tickets are queued for `model`."""
        return sum(waiter.model == model for waiter in self.queue.values())

    def __repr__(self) -> str:
        residents = ", ".join(map(repr, self.residents.values())) or "no residents"
        used = f"{format_bytes(self.held)} of {format_bytes(self.budget)}"
        return f"<Residency {used} | {residents} | {len(self.queue)} queued>"

    # Events

    def handle(self, event: Event) -> list[Action]:
        """Take one event in; what must be done about it comes out, in order."""
        match event:
            case Acquire():
                return self._acquire(event)
            case Leave():
                return self._leave(event)
            case Loaded():
                return self._loaded(event)
            case LoadFailed():
                return self._load_failed(event)
            case Reported():
                return self._reported(event)
            case Died():
                return self._gone(event.serial, event.at, "its worker died")
            case Unloaded():
                return self._gone(event.serial, event.at, "unloaded")

    def _acquire(self, event: Acquire) -> list[Action]:
        """Every ticket ends in exactly one of five ways:

        1. grant: the model is ready;
        2. refuse: it can never fit, and so nothing is evicted for it;
        3. join: it is loading already;
        4. load: it fits, perhaps after evicting idle Residents;
        5. queue: what is in the way is in use, or the model itself is on its way out.
        """
        resident = self.resident(event.model)
        if resident is not None and resident.state is State.READY:
            return [self._grant(event.ticket, resident)]
        size = self._sizes.get(event.model, event.estimate)
        if resident is None and size > self.budget:
            return [Refuse(event.ticket, self._too_large(event.model, size))]
        self.queue[event.ticket] = Waiter(event.ticket, event.model, size, event.at)
        return self._advance(event.at)

    def _leave(self, event: Leave) -> list[Action]:
        waiter = self.queue.pop(event.ticket, None)
        if waiter is not None:
            return self._abandon(waiter.model, event.at)
        resident = self._holders.pop(event.ticket, None)
        if resident is None:
            return []
        resident.leases.discard(event.ticket)
        if resident.leases:
            return []
        resident.idle_since = event.at
        return self._advance(event.at)

    def _abandon(self, model: str, at: float) -> list[Action]:
        """A waiter has left: a load goes on while anybody waits for it and ends when nobody does."""
        resident = self.resident(model)
        if resident is None or resident.state is not State.LOADING or self.waiting(model):
            return []
        if not resident.started:
            return self._gone(resident.serial, at, "nobody waits for it")
        resident.move(State.UNLOADING, at, "nobody waits for it")
        return [CancelLoad(resident.serial), *self._advance(at)]

    def _loaded(self, event: Loaded) -> list[Action]:
        resident = self.residents[event.serial]
        if resident.state is not State.LOADING:
            return []  # it was cancelled at the same moment; Unloaded follows
        resident.move(State.READY, event.at, f"{format_bytes(event.measured)} measured")
        resident.idle_since = event.at
        resident.measured, resident.growth = event.measured, event.growth
        self._sizes[resident.model] = resident.size
        # Its waiters get their leases here, before anything can find it idle.
        grants = [self._grant(ticket, resident) for ticket in self._tickets(resident.model)]
        return [*grants, *self._advance(event.at)]

    def _load_failed(self, event: LoadFailed) -> list[Action]:
        resident = self.residents[event.serial]
        if resident.state is State.LOADING and event.out_of_memory and not resident.retried:
            idle = [other for other in self.residents.values() if other.idle]
            if idle:
                resident.retried, resident.started = True, False
                resident.story.append((event.at, "out of memory; retries after evicting all that is idle"))
                evictions = [self._evict(other, event.at, resident.model) for other in idle]
                return [*evictions, *self._advance(event.at)]
        refusals: list[Action] = []
        if resident.state is State.LOADING:
            refusals = [self._refuse(ticket, event.error) for ticket in self._tickets(resident.model)]
        return [*refusals, *self._gone(event.serial, event.at, f"load failed: {event.error}")]

    def _reported(self, event: Reported) -> list[Action]:
        resident = self.residents.get(event.serial)
        if resident is None or resident.state is not State.READY:
            return []
        resident.measured, resident.growth = event.measured, event.growth
        return self._advance(event.at)

    def _gone(self, serial: int, at: float, why: str) -> list[Action]:
        resident = self.residents.pop(serial, None)
        if resident is None:
            return []
        resident.move(State.GONE, at, why)
        for ticket in resident.leases:
            del self._holders[ticket]
        return self._advance(at)

    # Decisions

    def _advance(self, at: float) -> list[Action]:
        """Look at everything that waits again, oldest first, and do what has become possible."""
        actions = self._shrink(at)
        for model in dict.fromkeys(waiter.model for waiter in self.queue.values()):
            if self.resident(model) is None:
                actions += self._admit(model, at)
        actions += self._start(at)
        return actions

    def _admit(self, model: str, at: float) -> list[Action]:
        """Reserve bytes for a queued model and evict for it, if evicting the idle is enough."""
        tickets = self._tickets(model)
        size = self._sizes.get(model, self.queue[tickets[0]].estimate)
        if size > self.budget:
            return [self._refuse(ticket, self._too_large(model, size)) for ticket in tickets]
        chosen = victims(self._candidates(), self.committed + size - self.budget)
        if chosen is None:
            return []
        evictions: list[Action] = [self._evict(self.residents[victim.serial], at, model) for victim in chosen]
        self._serials += 1
        resident = Resident(model, self._serials, size)
        resident.story.append((at, f"admitted with {format_bytes(size)}"))
        self.residents[resident.serial] = resident
        return evictions

    def _start(self, at: float) -> list[Action]:
        """Start the admitted loads whose memory has come free."""
        actions: list[Action] = []
        for resident in self.residents.values():
            if resident.state is not State.LOADING or resident.started:
                continue
            leaving = any(other.state is State.UNLOADING for other in self.residents.values())
            if self.held + resident.size <= self.budget and not (resident.retried and leaving):
                resident.started = True
                resident.story.append((at, "load started"))
                actions.append(StartLoad(resident.model, resident.serial, resident.size))
        return actions

    def _shrink(self, at: float) -> list[Action]:
        """A measurement above its estimate can overrun the budget: the idle give way, all of them if need be."""
        idle = self._candidates()
        chosen = victims(idle, self.committed - self.budget)
        return [
            self._evict(self.residents[victim.serial], at, "the budget")
            for victim in (idle if chosen is None else chosen)
        ]

    def _evict(self, resident: Resident, at: float, beneficiary: str) -> Action:
        resident.move(State.UNLOADING, at, f"evicted for {beneficiary}")
        return Unload(resident.serial)

    def _candidates(self) -> list[Candidate]:
        return [Candidate(r.serial, r.size, r.idle_since) for r in self.residents.values() if r.idle]

    def _tickets(self, model: str) -> list[int]:
        """The tickets queued for `model`, oldest first."""
        return [waiter.ticket for waiter in self.queue.values() if waiter.model == model]

    def _grant(self, ticket: int, resident: Resident) -> Action:
        self.queue.pop(ticket, None)
        resident.leases.add(ticket)
        self._holders[ticket] = resident
        return Grant(ticket, resident.serial)

    def _refuse(self, ticket: int, error: RosterError) -> Action:
        del self.queue[ticket]
        return Refuse(ticket, error)

    def _too_large(self, model: str, size: int) -> ModelTooLarge:
        return ModelTooLarge(
            f"{model} needs {format_bytes(size)} and the memory budget is {format_bytes(self.budget)}", param="model"
        )

    # Proof

    def validate(self) -> None:
        """Raise AssertionError where an invariant is broken. Called after every event in tests."""
        residents = self.residents.values()
        stays = [r.model for r in residents if r.state is not State.UNLOADING]
        assert len(stays) == len(set(stays)), f"a model is resident twice: {self!r}"
        assert all(r.state is not State.GONE for r in residents), f"a Resident that is gone is listed: {self!r}"
        assert all(not r.leases for r in residents if r.state is not State.READY), f"a lease on no model: {self!r}"
        assert {t: r.serial for t, r in self._holders.items()} == {
            ticket: r.serial for r in residents for ticket in r.leases
        }, f"leases and Residents disagree: {self!r}"
        assert not self._holders.keys() & self.queue.keys(), f"a ticket waits and holds a lease: {self!r}"
        ready = {r.model for r in residents if r.state is State.READY}
        assert not any(w.model in ready for w in self.queue.values()), f"a waiter for a ready model: {self!r}"
        loading = [r for r in residents if r.state is State.LOADING]
        assert all(self.waiting(r.model) for r in loading), f"a load that nobody waits for: {self!r}"
        over = self.committed > self.budget
        assert not (over and any(r.idle for r in residents)), f"over budget beside an idle Resident: {self!r}"
        assert not self._stuck(), f"a load waits for room that is there: {self!r}"

    def _stuck(self) -> bool:
        """Nothing is on its way out, everything committed fits, and yet an admitted load has not started."""
        leaving = any(r.state is State.UNLOADING for r in self.residents.values())
        pending = any(r.state is State.LOADING and not r.started for r in self.residents.values())
        return pending and not leaving and self.committed <= self.budget
