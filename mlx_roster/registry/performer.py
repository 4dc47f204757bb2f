"""Does what the state machine says: searches, loads and unloads, whose outcomes go back to it as events."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from mlx_roster.core import Counters, Located, ModelSource
from mlx_roster.errors import Busy, Draining, LoadFailed, LoadOutOfMemory, RosterError
from mlx_roster.registry import events
from mlx_roster.registry.catalog import Catalog
from mlx_roster.registry.holding import Holding
from mlx_roster.registry.journal import Journal
from mlx_roster.registry.policy import Policy
from mlx_roster.registry.ports import Sources, Workers
from mlx_roster.registry.resident import State
from mlx_roster.registry.rounds import Rounds
from mlx_roster.registry.searches import Searches
from mlx_roster.registry.state import Residency
from mlx_roster.registry.telling import limiting, limits_of, source_of
from mlx_roster.registry.tenancy import CatalogTerms

logger = logging.getLogger(__name__)

#: Who got a lease within this time, in seconds, did not wait for it.
AT_ONCE = 0.001

#: What is said of a Resident just before it is gone from the sums.
ENDS = frozenset({"gone", "died", "failed"})


class Performer:
    """Feeds a Residency, and acts. `expect` a ticket before it is fed; `close` when nothing more is fed."""

    def __init__(
        self,
        state: Residency,
        workers: Workers,
        sources: Sources,
        journal: Journal,
        catalog: Catalog,
        clock: Callable[[], float],
    ) -> None:
        self._state = state
        self._workers = workers
        self._sources = sources
        self._journal = journal
        self._catalog = catalog
        self._now = clock
        self._searches = Searches(sources, journal, self.feed, clock)
        self._holdings: dict[int, Holding] = {}  # by serial
        self._rounds = Rounds(state, self._searches, self._holdings, self.feed, clock)
        # By ticket.
        self._waiting: dict[int, asyncio.Future[Holding | None]] = {}
        self._asked: dict[int, events.Acquire] = {}
        #: What the workers have done that are gone, by model.
        self._done: dict[str, Counters] = {}
        self._jobs: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._closed = False

    def expect(self, ticket: int) -> asyncio.Future[Holding | None]:
        """What becomes of a ticket: the Holding it has a lease on, None where that is lost already, or an error."""
        future = self._waiting[ticket] = asyncio.get_running_loop().create_future()
        return future

    def forget(self, ticket: int) -> None:
        """Nobody awaits it any more."""
        del self._waiting[ticket]
        self._asked.pop(ticket, None)

    def feed(self, event: events.Event) -> None:
        """Hand one event to the state and perform what comes out."""
        if isinstance(event, events.Acquire):
            self._asked[event.ticket] = event
        elif isinstance(event, events.LoadFailed | events.Died | events.Unloaded):
            self._end(event)
        for action in self._state.handle(event):
            if not self._closed:
                self._perform(action)
        if not self._closed:
            self._rounds.plan()

    def tick(self) -> None:
        """Something may be due."""
        self._rounds.go()

    def follow(self, catalog: Catalog, policy: Policy, terms: CatalogTerms) -> None:
        """The roster has changed."""
        self._catalog = catalog
        self.feed(events.Configure(self._now(), policy, terms))
        for holding in list(self._holdings.values()):
            self._relimit(holding)

    async def gone(self, model: str) -> None:
        """Wait until the Residents are gone that `model` has now and that do not stay. Raises Draining at the end."""
        leaving = {one.serial for one in self._state.board.ledger.departing(model)}
        while any(self._state.board.ledger.get(serial) is not None for serial in leaving):
            if self._closed:
                raise Draining("the server is shutting down")
            await self._changed.wait()

    def refuse_waiting(self, error: RosterError) -> None:
        """End every wait with `error`, and what was begun for it."""
        for ticket, future in list(self._waiting.items()):
            if not future.done():
                future.set_exception(error)
                self.feed(events.Leave(self._now(), ticket))  # the last to leave a load cancels it

    async def close(self) -> None:
        """End all searches and loads, and stop every worker. Nobody waits any more."""
        self._searches.cancel_all()
        while self._jobs:  # a load that ends may be followed by an unload
            await asyncio.gather(*self._jobs, return_exceptions=True)
        self._closed = True
        self._rounds.end()
        workers = [holding.worker for holding in self._holdings.values() if holding.worker is not None]
        for failed in await asyncio.gather(*(worker.stop() for worker in workers), return_exceptions=True):
            if failed is not None:
                logger.error("a worker could not be stopped", exc_info=failed)
        self._changed.set()

    def loads(self) -> dict[str, tuple[int, int]]:
        """The loads that are going on: model → (bytes loaded, bytes in all)."""
        return {holding.model: holding.progress for holding in self._holdings.values() if holding.loaded is None}

    def stalled(self) -> list[str]:
        """See `Rounds.stalled`."""
        return self._rounds.stalled()

    def progress(self) -> dict[str, tuple[int, int]]:
        """These, and the downloads."""
        return {**self._sources.progress(), **self.loads()}

    def counters(self) -> dict[str, Counters]:
        """What each model's workers have done since the server started, and what those of now are doing."""
        found = dict(self._done)
        for holding in self._holdings.values():
            if holding.worker is not None:
                found[holding.model] = found.get(holding.model, Counters()) + holding.worker.counters
        return found

    def validate(self) -> None:
        """Raise AssertionError where what is going on is not what the state believes."""
        board = self._state.board
        started = {one.serial for one in board.ledger if one.started is not None}
        assert self._holdings.keys() == started, f"workers and Residents disagree: {self._state!r}"
        ready = [one.serial for one in board.ledger if one.state in (State.READY, State.DRAINING)]
        assert all(self._holdings[serial].worker is not None for serial in ready), "ready without a worker"
        assert set(board.queue) <= self._waiting.keys(), f"a waiter that nobody awaits: {self._state!r}"
        assert all(job in self._searches for job in board.searches), f"a search that nobody makes: {self._state!r}"

    # Acting

    def _perform(self, action: events.Action) -> None:  # noqa: C901 - a line or two for each kind of action
        match action:
            case events.Grant():
                self._grant(action)
            case events.Queue(ticket, model, why):
                queued = self._state.board.queue.waiting(model)
                self._journal.say("queue", model, ticket=ticket, why=why, queued=queued)
            case events.Refuse():
                self._refuse(action)
            case events.Locate(model, job):
                self._journal.say("locate", model, logging.DEBUG, job=job)
                entry = self._catalog.entry(model)
                assert entry is not None, f"{model} is to be looked for, and in no catalog"
                self._keep(self._searches.start(model, entry, job))
            case events.CancelLocate(job, stalled):
                self._searches.cancel(job, stalled)
            case events.StartLoad():
                self._start(action)
            case events.CancelLoad(serial, why, stalled):
                self._say("cancel", serial, why=why, stalled=stalled or None)
                load = self._holdings[serial].load
                assert load is not None
                load.cancel()
            case events.Drain(serial, why):
                self._say("drain", serial, why=why)
            case events.Unload(serial, why):
                self._job(self._unload(self._holdings[serial]))
                self._say("evict" if why.startswith("evicted") else "unload", serial, why=why)
            case events.Cut(serial, error, hangs):
                self._say("cut", serial, why=error.message, hangs=hangs or None)
                self._cut(self._holdings[serial], error, hangs)
            case events.Share(serial, size):
                worker = self._holdings[serial].worker
                assert worker is not None
                worker.share(size)

    def _grant(self, action: events.Grant) -> None:
        ticket, holding = action.ticket, self._holdings.get(action.serial)
        asked, future = self._asked[ticket], self._waiting[ticket]
        waited = self._now() - asked.at
        if not future.done():
            future.set_result(holding)
        resident = self._state.board.ledger.get(action.serial)
        if resident is not None:
            # Of a busy server's lines these would be most; who did not wait has a line in the access log.
            level = logging.INFO if waited > AT_ONCE else logging.DEBUG
            fields = {"waited": round(waited, 3), "leases": len(resident.leases), "exempt": asked.exempt or None}
            self._journal.say("grant", resident.model, level, ticket=ticket, **fields)

    def _refuse(self, action: events.Refuse) -> None:
        error = action.error
        retry = round(error.retry_after) if isinstance(error, Busy) else None
        self._journal.say(
            "refuse", action.model, ticket=action.ticket, code=error.code, why=error.message, retry_after=retry
        )
        future = self._waiting[action.ticket]
        if not future.done():
            future.set_exception(error)

    def _say(self, kind: str, serial: int, **fields: Any) -> None:
        """Something about a Resident, with the bytes behind it."""
        board = self._state.board
        resident = board.ledger.get(serial)
        if resident is not None:
            held, committed = board.ledger.held, board.ledger.committed
            if kind in ENDS:
                held, committed = held - resident.taken, committed - (resident.size if resident.stays else 0)
            sums = {"held": held, "committed": committed, "budget": board.policy.budget}
            self._journal.say(kind, resident.model, serial=serial, **fields, bytes=resident.taken, **sums)

    # Loading

    def _start(self, action: events.StartLoad) -> None:
        # Not what the roster says by now: `_relimit` sees to the difference when it is loaded.
        entry, located = self._searches.found[action.model]
        holding = self._holdings[action.serial] = Holding(
            action.model, action.serial, entry, located, self.feed, self._now
        )
        source = source_of(action.model, entry, located, self._state.board.policy.budget)
        self._say("load", action.serial, reserved=action.size)
        holding.load = self._job(self._load(holding, source))
        holding.load.add_done_callback(lambda load: self._load_ended(holding, load))

    async def _load(self, holding: Holding, source: ModelSource) -> None:
        """Ends in Loaded or LoadFailed, or is cancelled: see `_load_ended`."""
        serial = holding.serial
        try:
            worker = await self._workers.load(source, holding)
        except RosterError as error:
            self.feed(events.LoadFailed(self._now(), serial, error, isinstance(error, LoadOutOfMemory)))
        except Exception:
            logger.exception("loading %s failed", source.name)
            self.feed(events.LoadFailed(self._now(), serial, LoadFailed(f"{source.name} could not be loaded")))
        else:
            holding.worker, holding.loaded = worker, self._now()
            took, measured = holding.loaded - holding.started, worker.measured
            self._say("loaded", serial, seconds=round(took, 3), measured=measured.active, growth=measured.growth)
            self.feed(events.Loaded(holding.loaded, serial, measured.active, measured.growth))
            self._relimit(holding)  # the roster may have changed while it was loading

    def _load_ended(self, holding: Holding, load: asyncio.Task[None]) -> None:
        """Not part of the job: one that is cancelled before its first step never runs."""
        if load.cancelled():
            self.feed(events.Unloaded(self._now(), holding.serial))

    # Running

    def _relimit(self, holding: Holding) -> None:
        """Tell a worker what its model's entry says now."""
        entry, resident = self._catalog.entry(holding.model), self._state.board.ledger.current(holding.model)
        stays = resident is not None and resident.serial == holding.serial and resident.state is State.READY
        if entry is None or not stays or limiting(entry) == limiting(holding.entry):
            return
        holding.entry = entry

        def tell(located: Located | None) -> None:
            if holding.worker is not None and holding.entry is entry:
                holding.located = located or holding.located
                holding.worker.limit(limits_of(entry, holding.located))

        self._keep(self._searches.again(holding.model, entry, tell))

    def _cut(self, holding: Holding, error: RosterError, hangs: bool) -> None:
        assert holding.worker is not None
        holding.hung = hangs
        holding.worker.cut(error)
        self._job(self._unload(holding))

    async def _unload(self, holding: Holding) -> None:
        worker = holding.worker
        assert worker is not None
        try:
            await (worker.kill() if holding.hung else worker.stop())
        finally:
            # Whatever went wrong, those who wait for the room must not wait for ever.
            self.feed(events.Unloaded(self._now(), holding.serial))

    def _end(self, event: events.LoadFailed | events.Died | events.Unloaded) -> None:
        holding = self._holdings.pop(event.serial, None)
        if holding is None:
            return
        if holding.worker is not None:
            self._done[holding.model] = self._done.get(holding.model, Counters()) + holding.worker.counters.done
        match event:
            case events.LoadFailed(error=error):
                self._say("failed", event.serial, why=error.message)
            case events.Died():
                self._say("died", event.serial)
            case events.Unloaded():
                self._say("gone", event.serial)
        changed, self._changed = self._changed, asyncio.Event()
        asyncio.get_running_loop().call_soon(changed.set)

    def _job(self, coroutine: Coroutine[None, None, None]) -> asyncio.Task[None]:
        return self._keep(asyncio.get_running_loop().create_task(coroutine))

    def _keep(self, task: asyncio.Task[None]) -> asyncio.Task[None]:
        self._jobs.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._jobs.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("the registry failed at something it does beside requests", exc_info=error)
