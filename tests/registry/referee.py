"""What must hold of a Residency, known from its events and actions alone: it is told both, and objects.

Its books are kept apart from those of the state machine, so that a mistake there is not believed here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mlx_roster.errors import (
    Draining,
    LoadCooldown,
    LoadFailed,
    ModelNotFound,
    ModelTooLarge,
    QueueFull,
    QueueTimeout,
    RosterError,
    WorkerCrashed,
)
from mlx_roster.registry import events
from mlx_roster.registry.events import Action, Event
from mlx_roster.registry.policy import Policy, Terms
from tests.registry.books import Claim, Health, Phase, Search, Worker

#: A kind of refusal; None: none.
Verdict = type[RosterError] | None


@dataclass
class Referee:
    policy: Policy
    terms: Mapping[str, Terms]
    claims: dict[int, Claim] = field(default_factory=dict)
    searches: dict[int, Search] = field(default_factory=dict)
    workers: dict[int, Worker] = field(default_factory=dict)
    healths: dict[str, Health] = field(default_factory=dict)
    #: Every Resident that there has been, and those of them whose load ran out of memory and may be tried again.
    serials: set[int] = field(default_factory=set)
    again: set[int] = field(default_factory=set)
    #: The models for which that has happened to those who wait.
    retried: set[str] = field(default_factory=set)
    #: Admitted loads that have not begun, and their bytes.
    pending: Mapping[str, int] = field(default_factory=dict)

    # What is going on

    def waiting(self, model: str | None = None) -> list[Claim]:
        return [one for one in self.claims.values() if one.waits and model in (None, one.model)]

    def leases(self, serial: int) -> list[Claim]:
        return [one for one in self.claims.values() if one.serial == serial and not one.lost]

    def current(self, model: str) -> Worker | None:
        found = [one for one in self.workers.values() if one.model == model and one.stays]
        assert len(found) < 2, f"{model} is there twice: {found}"
        return found[0] if found else None

    def pinned(self, model: str) -> bool:
        health = self.healths.get(model)
        by_operator = None if health is None else health.pinned
        return self.terms[model].pin if by_operator is None else by_operator

    def hangs(self, worker: Worker, at: float) -> bool:
        running = worker.phase in (Phase.READY, Phase.DRAINING)
        return running and worker.awaited is not None and worker.awaited + self.policy.stall_timeout <= at

    def health(self, model: str) -> Health:
        terms = self.terms[model]
        return self.healths.setdefault(model, Health(terms.version, terms.sizing, terms.pin))

    # One event and what came of it

    def see(self, event: Event, actions: list[Action], before: Mapping[str, int], after: Mapping[str, int]) -> None:
        """`before` and `after` are the bytes of admitted loads that have not begun: no action tells of them."""
        self.pending = before
        verdict = self._verdict(event) if isinstance(event, events.Acquire) else None
        self._hear(event, actions)
        self.pending = {**after, **{one.model: one.size for one in actions if isinstance(one, events.StartLoad)}}
        for action in actions:
            self._watch(event, action)
        if isinstance(event, events.Acquire):
            self._one_outcome(event, actions, verdict)
        if isinstance(event, events.Tick):
            left = [one for one in self.workers.values() if self.hangs(one, event.at)]
            assert not left, f"these hang, and are left alone: {left}"
        waited_for = {one.model for one in self.waiting()}
        self.retried &= waited_for
        for model in waited_for:
            current = self.current(model)
            assert current is None or current.phase is Phase.LOADING, f"{model} is ready, and waited for"
        assert self.workers or self.searches or not self.waiting(), f"these wait for nothing: {self.waiting()}"

    def _one_outcome(self, event: events.Acquire, actions: list[Action], verdict: Verdict) -> None:
        kinds = events.Grant | events.Queue | events.Refuse
        (outcome, *more) = [one for one in actions if isinstance(one, kinds) and one.ticket == event.ticket]
        # Where it is queued, its load may be refused or started in the same step, and its waiter with it.
        assert not more, f"more than one outcome: {actions}"
        refused = type(outcome.error) if isinstance(outcome, events.Refuse) else None
        # What it is queued behind may have been admitted, and pinned, in the same step.
        squeezed = refused is ModelTooLarge and self._too_large(event.model)
        assert refused is verdict or squeezed, f"{event} should be answered with {verdict}, not with {outcome}"

    def _verdict(self, event: events.Acquire) -> Verdict:
        """How a new request should be refused, by the table in docs/scheduling.md."""
        model, terms = event.model, self.terms.get(event.model)
        if terms is None:
            return ModelNotFound
        current, health = self.current(model), self.health(model)
        if current is None and model not in self.pending:
            if self._too_large(model):
                return ModelTooLarge
            if health.cools > event.at and not event.exempt:
                return LoadCooldown
        ready = current is not None and current.phase is Phase.READY
        if current is not None and ready and len(self.leases(current.serial)) < terms.max_concurrency:
            return None
        full = self._full(model, terms) or self._client_full(event)
        return QueueFull if full and not event.exempt else None

    def _too_large(self, model: str) -> bool:
        size, others = self.health(model).size, [one for one in self.workers.values() if one.stays]
        sizes = {**self.pending, **{one.model: min(one.size, one.settled) for one in others}}
        pinned = sum(taken for name, taken in sizes.items() if name != model and self.pinned(name))
        return size is not None and size + pinned > self.policy.budget

    def _full(self, model: str, terms: Terms) -> bool:
        counts = dict.fromkeys(self.terms, 0)
        for claim in self.waiting():
            counts[claim.model] += not claim.exempt
        for worker in self.workers.values():
            if worker.model in self.terms:
                places = self.terms[worker.model].max_concurrency
                counts[worker.model] += max(0, len(self.leases(worker.serial)) - places)
        full = terms.max_queued is not None and counts[model] >= terms.max_queued
        return full or sum(counts.values()) >= self.policy.max_queued

    def _client_full(self, event: events.Acquire) -> bool:
        if event.client is None:
            return False
        waits = [one for one in self.waiting() if not one.exempt]
        for worker in self.workers.values():
            if worker.model in self.terms:
                leases = sorted(self.leases(worker.serial), key=lambda one: one.ticket)
                waits += leases[self.terms[worker.model].max_concurrency :]
        own = [one.model for one in waits if one.client == event.client]
        if event.client_limit is not None:
            return len(own) >= event.client_limit
        places = self.terms[event.model].max_queued
        return 2 * len(own) >= self.policy.max_queued or (places is not None and 2 * own.count(event.model) >= places)

    # Events

    def _hear(self, event: Event, actions: list[Action]) -> None:  # noqa: C901 - a line or two for each kind of event
        match event:
            case events.Acquire(at, ticket, model, _, exempt, client):
                self.claims[ticket] = Claim(ticket, model, at, exempt, client)
            case events.Leave(at, ticket):
                claim = self.claims.pop(ticket, None)
                if claim is not None and not claim.lost and claim.serial in self.workers:
                    self.workers[claim.serial].progressed = at
            case events.Located() | events.LocateFailed():
                self._located(event, actions)
            case events.LocateProgressed(_, job, since):
                if job in self.searches:
                    self.searches[job].progressed = max(self.searches[job].progressed, since)
            case events.Progressed(_, serial, since, awaited):
                if serial in self.workers:
                    self.workers[serial].progressed = max(self.workers[serial].progressed, since)
                    self.workers[serial].awaited = awaited
            case events.Loaded() | events.Reported():
                self._measured(event, actions)
            case events.LoadFailed():
                self._load_failed(event)
            case events.Died() | events.Unloaded():
                self._gone(event)
            case events.Pin(_, model, pinned):
                if model in self.terms:
                    self.health(model).pinned = pinned
            case events.Configure():
                self._configured(event)
            case events.Tick(at):
                self._expired(at)

    def _located(self, event: events.Located | events.LocateFailed, actions: list[Action]) -> None:
        search = self.searches.pop(event.job, None)
        if search is None:
            assert not actions, f"a search that was ended had effects: {actions}"
        elif isinstance(event, events.Located):
            self.health(search.model).size = event.estimate
        else:
            self.health(search.model).failed(event.at)

    def _measured(self, event: events.Loaded | events.Reported, actions: list[Action]) -> None:
        worker = self.workers.get(event.serial)
        heard = {Phase.LOADING} if isinstance(event, events.Loaded) else {Phase.READY, Phase.DRAINING}
        if worker is None or not (worker.phase in heard or (worker.cut and self.leases(worker.serial))):
            assert not actions, f"one that is going away was heard: {actions}"
            return
        worker.measure(event)
        if isinstance(event, events.Loaded):
            worker.phase, worker.settled = Phase.READY, worker.size
            worker.loaded = worker.progressed = event.at
            health = self.health(worker.model)
            health.failures, health.cools = 0, 0.0
            if health.sizing == worker.sizing:
                health.size = worker.size

    def _load_failed(self, event: events.LoadFailed) -> None:
        worker = self.workers.pop(event.serial, None)
        if worker is None or worker.phase is Phase.CANCELLED:
            return
        evictable = any(
            one.phase is Phase.READY and not self.leases(one.serial) and not self.pinned(one.model)
            for one in self.workers.values()
        )
        if event.out_of_memory and evictable and worker.model not in self.retried:
            self.retried.add(worker.model)
            self.again.add(event.serial)
        else:
            worker.health.failed(event.at)

    def _gone(self, event: events.Died | events.Unloaded) -> None:
        for claim in self.leases(event.serial):
            claim.lost = True
        worker = self.workers.pop(event.serial, None)
        if worker is not None and isinstance(event, events.Died) and worker.phase in (Phase.READY, Phase.DRAINING):
            health = self.healths.get(worker.model)
            # What the entry said before it was changed is not what crashed now.
            if health is worker.health and health.version == worker.version:
                health.crashed(event.at, event.at - worker.loaded)

    def _configured(self, event: events.Configure) -> None:
        self.policy, self.terms = event.policy, event.terms
        for model, health in list(self.healths.items()):
            terms = event.terms.get(model)
            if terms is None:
                del self.healths[model]
            elif terms.version != health.version:
                self.healths[model] = worker_health = Health(terms.version, terms.sizing, terms.pin)
                for worker in self.workers.values():
                    if worker.health is health:
                        worker.health = worker_health
            elif terms.sizing != health.sizing:
                health.sizing, health.size = terms.sizing, None
            if terms is not None and terms.pin != health.entry_pinned:
                self.healths[model].entry_pinned, self.healths[model].pinned = terms.pin, None

    def _expired(self, at: float) -> None:
        """Work that stands still counts as failed."""
        for one in [*self.searches.values(), *self.workers.values()]:
            loads = isinstance(one, Search) or one.phase is Phase.LOADING
            if loads and one.progressed + self.policy.load_timeout <= at:
                self.health(one.model).failed(at)

    # Actions

    def _watch(self, event: Event, action: Action) -> None:
        match action:
            case events.Grant(ticket, serial):
                claim, worker = self.claims[ticket], self.workers[serial]
                assert claim.waits, f"{claim} is granted"
                assert (worker.phase, worker.model) == (Phase.READY, claim.model), f"{claim} is granted on {worker}"
                assert worker.version == self.terms[claim.model].version, f"{worker} is of another roster"
                claim.serial = serial
            case events.Queue(ticket):
                assert self.claims[ticket].waits, f"{self.claims[ticket]} is queued"
            case events.Refuse():
                self._refused(event, action)
            case events.Locate(model, job):
                assert self.current(model) is None, f"{model} is looked for, and is there"
                assert job not in self.searches, f"job {job} is there already"
                assert model not in {one.model for one in self.searches.values()}, f"{model} is looked for twice"
                self.searches[job] = Search(model, event.at)
            case events.CancelLocate(job):
                del self.searches[job]  # once only
            case events.StartLoad():
                self._started(event, action)
            case events.Share(serial):
                assert self.workers[serial].phase in (Phase.READY, Phase.DRAINING), "told to one that is going away"
            case _:
                self._stopped(event, action)

    def _started(self, event: Event, action: events.StartLoad) -> None:
        model, serial, size = action.model, action.serial, action.size
        assert self.current(model) is None, f"{model} is loaded twice"
        assert self.waiting(model), f"{model} is loaded for nobody"
        assert serial not in self.serials or serial in self.again, f"serial {serial} was there already"
        self.serials.add(serial)
        self.again.discard(serial)
        held = sum(one.taken for one in self.workers.values())
        assert held + size <= self.policy.budget, f"{size} more than {held} is too much for {self.policy.budget}"
        health, terms = self.health(model), self.terms[model]
        self.workers[serial] = Worker(
            model, serial, health, terms.version, terms.sizing, size, event.at, taken=size, settled=size
        )

    def _stopped(self, event: Event, action: Action) -> None:
        assert isinstance(action, events.CancelLoad | events.Drain | events.Unload | events.Cut)
        worker = self.workers[action.serial]
        leases, by_roster = self.leases(action.serial), isinstance(event, events.Withdraw | events.Configure)
        match action:
            case events.CancelLoad():
                assert worker.phase is Phase.LOADING, f"{worker} is cancelled"
                assert by_roster or not self.waiting(worker.model), f"{worker} is waited for"
                worker.phase = Phase.CANCELLED
            case events.Drain():
                assert worker.phase is Phase.READY, f"{worker} is drained"
                assert leases, f"{worker} is drained of nothing"
                assert by_roster or not self.pinned(worker.model), f"{worker} is pinned"
                worker.phase, worker.progressed = Phase.DRAINING, event.at
            case events.Unload():
                assert worker.phase in (Phase.READY, Phase.DRAINING), f"{worker} is unloaded"
                assert not leases, f"{worker} is unloaded under {leases}"
                freely = worker.phase is Phase.DRAINING or by_roster or not self.pinned(worker.model)
                assert freely, f"{worker} is pinned"
                worker.phase = Phase.STOPPING
            case events.Cut(_, _, hangs):
                assert hangs == (isinstance(event, events.Tick) and self.hangs(worker, event.at)), f"{worker} is cut"
                if hangs:
                    self._hung(worker, action, event.at)
                else:
                    silent = event.at - worker.progressed >= self.policy.drain_timeout
                    forced = isinstance(event, events.Withdraw) and event.force and event.model == worker.model
                    assert worker.phase is Phase.DRAINING, f"{worker} is cut"
                    assert forced or (silent and isinstance(event, events.Tick)), f"{worker} is cut too early"
                worker.phase, worker.cut = Phase.STOPPING, True

    def _hung(self, worker: Worker, action: events.Cut, at: float) -> None:
        assert worker.phase in (Phase.READY, Phase.DRAINING), f"{worker} is cut"
        assert isinstance(action.error, WorkerCrashed), f"{worker} is cut with {action.error!r}"
        health = self.healths.get(worker.model)
        if health is worker.health and health.version == worker.version:
            health.crashed(at, (worker.awaited or at) - worker.loaded)

    def _refused(self, event: Event, action: events.Refuse) -> None:
        claim, error, timeouts = self.claims[action.ticket], action.error, self.policy
        assert claim.waits, f"{claim} is refused"
        claim.refused = True
        current, new = self.current(claim.model), isinstance(event, events.Acquire)
        if new and event.ticket == claim.ticket:
            return  # see _verdict
        match error:
            case ModelNotFound():
                right = isinstance(event, events.Configure) and claim.model not in event.terms
            case ModelTooLarge():
                right = self._too_large(claim.model)
            case QueueTimeout():
                waited = event.at - claim.since >= timeouts.queue_timeout
                right = isinstance(event, events.Tick) and waited and not claim.exempt and current is None
            case Draining():
                right = isinstance(event, events.Withdraw) and event.model == claim.model
            case LoadFailed():
                told = isinstance(event, events.LoadFailed | events.LocateFailed) and error is event.error
                right = told or isinstance(event, events.Tick)
            case _:
                right = False
        assert right, f"{claim} is refused with {error!r} after {event}"
