"""A Residency and all that is outside of it: clients, files, workers, an operator, a clock; what may happen there."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from mlx_roster.config import Multiple
from mlx_roster.errors import LoadFailed, LoadOutOfMemory
from mlx_roster.registry import events
from mlx_roster.registry.events import Action, Event
from mlx_roster.registry.policy import Policy, Terms
from mlx_roster.registry.state import Residency
from tests.registry.books import Phase, Worker
from tests.registry.referee import Referee

#: Bytes of each model. Of 12, some fit together, `all` with nobody, and `whale` never.
SIZES = {"a": 3, "b": 4, "c": 5, "d": 8, "all": 12, "whale": 14}
BUDGETS = (12, 12, 9, 6, 16)

#: Whose requests they are, and how many of each may wait: None is half of the places there are.
CLIENTS = {"none": 0, "one": 1, "few": 2, "many": 50, "half": None}

#: Seconds from one thing to the next, and how long nothing may happen.
PAUSES = (0.0, 0.0, 0.5, 1.0, 8.0)
SILENCES = (1.0, 5.0, 20.0, 35.0, 90.0, 700.0)

#: For how many seconds a worker may have been at one thing.
STUCK = (0.0, 1.0, 15.0, 59.0, 61.0)

POLICIES = (
    Policy(12, load_timeout=60.0),
    Policy(12, max_wait=5.0, min_residency=20.0, queue_timeout=40.0, load_timeout=60.0, drain_timeout=30.0),
    Policy(12, max_wait=0.0, min_residency=0.0, queue_timeout=90.0, max_queued=3, stall_timeout=20.0),
    Policy(12, max_wait=30.0, min_residency=Multiple(1), queue_timeout=20.0, max_queued=8, drain_timeout=0.0),
)

#: What may change of a model's entry.
CHANGES: tuple[dict[str, object], ...] = (
    {"version": 1},
    {"version": 2},
    {"max_concurrency": 32, "sizing": (1000, 32)},
    {"max_concurrency": 32, "sizing": (2000, 32)},
    {"ttl": 0.0},
    {"ttl": 10.0},
    {"ttl": math.inf},
    {"pin": True},
    {"pin": False},
    {"priority": 3},
    {"priority": -1},
    {"max_queued": 1},
    {"max_queued": 4},
    {"max_queued": None},
    {"max_concurrency": 1, "sizing": (1000, 1)},
    {"max_concurrency": 3, "sizing": (2000, 3)},
)

#: An entry that says nothing else. Its sizing: the tokens of its context, and its places.
PLAIN = Terms(version=0, sizing=(1000, 32), ttl=100.0)

#: All of them at the beginning. Of the first, two requests have a place at a time.
ENTRIES = {**dict.fromkeys(SIZES, PLAIN), "a": replace(PLAIN, sizing=(1000, 2), max_concurrency=2)}


@dataclass(frozen=True)
class Snapshot:
    """All that can be compared of two Residencies."""

    said: str
    wake: float
    residents: tuple[tuple[object, ...], ...]
    leases: tuple[tuple[int, int], ...]
    queue: tuple[int, ...]
    searches: tuple[tuple[int, str], ...]

    @classmethod
    def of(cls, state: Residency) -> Snapshot:
        board = state.board
        residents = tuple(
            (one.serial, one.state, one.size, one.taken, one.share, one.pinned, one.fresh_until) for one in board.ledger
        )
        leases = tuple((ticket, holder.resident.serial) for ticket, holder in board.holders.items())
        searches = tuple((job, line.model) for job, line in board.searches.items())
        return cls(repr(state), state.wake, residents, leases, tuple(board.queue), searches)


class World:
    """Every event is checked by `validate` and by a Referee."""

    def __init__(self, policy: Policy) -> None:
        self.at = 1000.0
        self.policy = policy
        self.terms: dict[str, Terms] = dict(ENTRIES)
        self.state = Residency(policy, self.terms)
        self.referee = Referee(policy, self.terms)
        self.tickets = 0

    def __repr__(self) -> str:
        return f"{self.state!r} at {self.at}"

    def feed(self, event: Event) -> list[Action]:
        """Let `event` happen: what comes of it."""
        before = self._pending()
        actions = self.state.handle(event)
        self.referee.see(event, actions, before, self._pending())
        self.state.validate()
        return actions

    def _pending(self) -> dict[str, int]:
        return {one.model: one.size for one in self.state.board.ledger.pending()}

    # Who is there to have something happen to it

    def serials(self, *phases: Phase) -> list[int]:
        return sorted(serial for serial, one in self.referee.workers.items() if one.phase in phases)

    def worker(self, serial: int) -> Worker:
        return self.referee.workers[serial]

    # Time

    def tick(self) -> None:
        for _ in range(2):  # what begins to drain in a Tick may have no time at all for it
            self.feed(events.Tick(self.at))
            if self.state.wake > self.at:
                return
        raise AssertionError(f"a Tick does not help: {self}")

    def punctually(self, seconds: float) -> None:
        """Time passes, with a Tick at each moment at which one is due."""
        end = self.at + seconds
        while (due := max(self.state.wake, self.at)) <= end:
            self.at = due
            self.tick()
        self.at = end

    # Clients

    def ask(
        self, model: str, keep_alive: float | None = None, *, exempt: bool = False, client: str | None = None
    ) -> int:
        self.tickets += 1
        limit = None if client is None else CLIENTS[client]
        self.feed(events.Acquire(self.at, self.tickets, model, keep_alive, exempt, client, limit))
        return self.tickets

    def leave(self, ticket: int) -> None:
        self.feed(events.Leave(self.at, ticket))

    # Files

    def growth(self, model: str) -> int:
        """What a worker says after a load that it may still come to take, if all goes well."""
        return 0

    def located(self, job: int, estimate: int) -> None:
        self.feed(events.Located(self.at, job, estimate))

    def not_located(self, job: int) -> None:
        self.feed(events.LocateFailed(self.at, job, LoadFailed("it is not there")))

    def downloaded(self, job: int, since: float) -> None:
        self.feed(events.LocateProgressed(self.at, job, since))

    # Workers

    def loaded(self, serial: int, measured: int, growth: int = 0) -> None:
        self.feed(events.Loaded(self.at, serial, measured, growth))

    def load_failed(self, serial: int, *, out_of_memory: bool = False) -> None:
        error = LoadOutOfMemory("it is broken") if out_of_memory else LoadFailed("it is broken")
        self.feed(events.LoadFailed(self.at, serial, error, out_of_memory))

    def progressed(self, serial: int, since: float, awaited: float | None = None) -> None:
        self.feed(events.Progressed(self.at, serial, since, awaited))

    def reported(self, serial: int, measured: int, growth: int = 0, spare: int = 0) -> None:
        self.feed(events.Reported(self.at, serial, measured, growth, min(spare, measured)))

    def died(self, serial: int) -> None:
        self.feed(events.Died(self.at, serial))

    def unloaded(self, serial: int) -> None:
        self.feed(events.Unloaded(self.at, serial))

    # The operator

    def pin(self, model: str, pinned: bool) -> None:
        self.feed(events.Pin(self.at, model, pinned))

    def withdraw(self, model: str, *, force: bool = False) -> None:
        self.feed(events.Withdraw(self.at, model, force))

    def configure(self, terms: dict[str, Terms], policy: Policy | None = None) -> None:
        self.terms, self.policy = terms, policy or self.policy
        self.feed(events.Configure(self.at, self.policy, self.terms))

    def change(self, model: str, change: dict[str, object] | None) -> None:
        """Another entry for `model`, which is added where it is missing; None removes it."""
        terms = {name: one for name, one in self.terms.items() if change is not None or name != model}
        if change is not None:
            terms[model] = replace(self.terms.get(model, PLAIN), **change)  # type: ignore[arg-type]
        self.configure(terms)

    def budget(self, budget: int) -> None:
        self.configure(dict(self.terms), replace(self.policy, budget=budget))

    # The end

    def wind_down(self) -> None:
        """Nobody comes any more, and what is open goes well: all who wait are answered, and all is given back."""
        self._until(lambda: not self.referee.waiting(), self._round)
        for ticket in list(self.referee.claims):
            self.leave(ticket)
        for model in list(self.terms):
            self.withdraw(model)
        self._until(lambda: not self.referee.workers, self._stop)
        assert not self.referee.searches, f"these are looked for, for nobody: {self.referee.searches}"
        board = self.state.board
        left = board.ledger.held, board.ledger.committed, len(board.queue), len(board.holders), len(board.searches)
        assert left == (0, 0, 0, 0, 0), f"something is left: {self}, {left}"
        assert math.isinf(self.state.wake), f"a Tick is due, and nothing is there: {self}"

    def _until(self, done: Callable[[], bool], go_on: Callable[[], None]) -> None:
        for _ in range(100):
            if done():
                return
            go_on()
        raise AssertionError(f"it does not end: {self}, {self.referee.waiting()}")

    def _round(self) -> None:
        for job, search in list(self.referee.searches.items()):
            self.located(job, SIZES[search.model])
        for serial in self.serials(Phase.LOADING):
            self.loaded(serial, self.worker(serial).size, self.growth(self.worker(serial).model))
        for claim in list(self.referee.claims.values()):
            if not claim.waits:
                self.leave(claim.ticket)
        for serial in self.serials(Phase.READY):
            # It has gone idle, or must give up its prompt cache.
            if (worker := self.worker(serial)).spare or worker.size > worker.settled:
                self.reported(serial, worker.settled)
        self._stop()
        self.punctually(8.0)

    def _stop(self) -> None:
        for serial in self.serials(Phase.STOPPING, Phase.CANCELLED):
            if serial in self.referee.workers:
                self.unloaded(serial)
