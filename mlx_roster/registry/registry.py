"""The registry as the server sees it: resolve a name, hold a lease, list what there is, change what there is.

It owns a `Residency`, performs the actions that come out of it and feeds the results back in as events. Everything
here runs on one event loop, and each event is decided without an await: there are no locks.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
import warnings
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Self

from mlx_roster import __version__
from mlx_roster.config import Defaults, Roster, format_bytes
from mlx_roster.core import AdapterSource, Counters, Ref
from mlx_roster.errors import Draining, ModelNotFound, RosterError, WorkerCrashed
from mlx_roster.registry import events, status
from mlx_roster.registry.catalog import Catalog, Sight
from mlx_roster.registry.holding import Holding, Lease
from mlx_roster.registry.journal import Follower, Journal
from mlx_roster.registry.listing import Listing
from mlx_roster.registry.overview import Change, ModelStatus, Overview, Preloads, Reload
from mlx_roster.registry.performer import Performer
from mlx_roster.registry.policy import Policy
from mlx_roster.registry.ports import Sources, Workers
from mlx_roster.registry.resident import State
from mlx_roster.registry.revision import Revision
from mlx_roster.registry.state import Residency
from mlx_roster.registry.tenancy import CatalogTerms

logger = logging.getLogger(__name__)


class Registry:
    """Leases on models under a budget of bytes. Use as an async context manager: leaving it stops all workers.

    `directory` is what unlisted paths are relative to: see `Catalog`. A `clock` other than the event loop's does not
    wake anybody: call `tick` when it has been put forward.
    """

    def __init__(
        self,
        roster: Roster,
        workers: Workers,
        sources: Sources,
        budget: int,
        *,
        directory: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.roster = roster
        self.catalog = Catalog(roster, directory or Path.cwd())
        self.preloads = Preloads()
        self._directory = directory or Path.cwd()
        policy = Policy.of(roster.scheduling, budget)
        self._state = Residency(policy, CatalogTerms(self.catalog, roster.scheduling))
        self._journal = Journal(self._status_or_none, self.overview)
        self._now = clock
        self._performer = Performer(self._state, workers, sources, self._journal, self.catalog, clock)
        self._created = int(time.time())
        self._started = self._now()
        self._tickets = itertools.count(1)
        self._reload: tuple[float, Reload] | None = None
        self._preloading: asyncio.Task[None] | None = None
        self._open = False

    async def __aenter__(self) -> Self:
        self._open = True
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.stop_admitting()
        if self._preloading is not None:
            await asyncio.wait([self._preloading])
        await self._performer.close()

    def stop_admitting(self) -> None:
        """From now on nobody gets a lease: who waits for one, and who comes, is told that the server is shutting down.
        Leases that are held go on."""
        self._open = False
        if self._preloading is not None:
            self._preloading.cancel()
        self._performer.refuse_waiting(Draining("the server is shutting down"))

    def __del__(self) -> None:
        if self._open:
            warnings.warn(f"{self!r} was dropped without being closed", ResourceWarning, stacklevel=1)

    def __repr__(self) -> str:
        return repr(self._state).replace("Residency", "Registry", 1)

    def validate(self) -> None:
        """Raise AssertionError where an invariant of the state, or of this shell over it, is broken."""
        self._state.validate()
        self._performer.validate()

    def tick(self) -> None:
        """Do what has fallen due. The event loop's timer calls this by itself."""
        self._performer.tick()

    # What a request needs

    def resolve(self, model: str | None, adapters: str | None = None, *, sees: Sight = None) -> Ref:
        """What a request's words mean; see `Catalog.resolve`."""
        return self.catalog.resolve(model, adapters, sees=sees)

    def defaults(self, ref: Ref, words: str | None) -> Defaults:
        """What the roster has for what a request leaves out, None where it says nothing; see `Catalog.defaults`."""
        return self.catalog.defaults(ref, words)

    def uses_generation_config(self, ref: Ref) -> bool:
        """Whether `Capabilities.generation` of the model comes after these; see `Catalog.uses_generation_config`."""
        return self.catalog.uses_generation_config(ref)

    @asynccontextmanager
    async def lease(
        self,
        ref: Ref,
        keep_alive: float | None = None,
        *,
        exempt: bool = False,
        client: str | None = None,
        client_limit: int | None = None,
    ) -> AsyncIterator[Lease]:
        """Wait for `ref`'s model to be ready and hold it until the block ends.

        The other arguments: see `events.Acquire`. Raises CapacityError, LoadFailed, WorkerCrashed, ModelNotFound
        or AdapterNotFound. Cancelling the wait gives the place up.
        """
        if not self._open:
            raise Draining("the server is shutting down")
        asked, ticket = self._now(), next(self._tickets)
        granted = self._performer.expect(ticket)
        try:
            asking = events.Acquire(asked, ticket, ref.model, keep_alive, exempt, client, client_limit)
            self._performer.feed(asking)
            yield self._lease(ref, await granted, asked)
        finally:
            self._performer.forget(ticket)
            self._performer.feed(events.Leave(self._now(), ticket))

    def _lease(self, ref: Ref, holding: Holding | None, asked: float) -> Lease:
        if holding is None or holding.worker is None or holding.loaded is None:
            raise WorkerCrashed(f"the worker of {ref.model} died before the request reached it")
        # As the roster is now: it may have changed since the request was resolved.
        spec = self.catalog.adapter(ref)
        adapter = None if spec is None else AdapterSource(ref.id, str(spec.source), spec.pin)
        load = max(0.0, holding.loaded - max(asked, holding.started))
        return Lease(ref, holding.worker, adapter, (self._now() - asked) * 1000, load * 1000)

    # What there is

    def listing(self, *, sees: Sight = None) -> list[Listing]:
        """Every model and adapter of the catalog, loaded or not, that a client may know of. Resets no timer."""
        return list(self.listings(sees=sees))

    def listings(self, *, sees: Sight = None) -> Iterator[Listing]:
        """The same one by one, each as it is at that moment: of tens of thousands, not all need be made in one go."""
        lister, catalog = self._lister(), self.catalog
        return (lister.listed(ref) for ref in catalog if sees is None or sees(ref))

    def listed(self, ref: Ref) -> Listing:
        """What `ref` names, be it listed or not."""
        return self._lister().listed(ref)

    def _lister(self) -> status.Lister:
        return status.Lister(self._state.board, self.catalog, self._created, self._now())

    def status(self) -> dict[str, int]:
        """How many Residents are in which state."""
        states = [resident.state for resident in self._state.board.ledger]
        shown = (State.LOADING, State.READY, State.DRAINING, State.UNLOADING)
        return {state.value: states.count(state) for state in shown}

    @property
    def closing(self) -> bool:
        """Whether nobody gets a lease any more: see `stop_admitting`."""
        return not self._open

    def stalled(self) -> list[str]:
        """The models whose worker has got nowhere for half of `scheduling.stall_timeout` or more."""
        return self._performer.stalled()

    def progress(self) -> Mapping[str, tuple[int, int]]:
        """The loads that are going on: model → (bytes loaded, bytes in all)."""
        return self._performer.loads()

    def words(self, ref: Ref) -> str:
        """What a request for `ref` is waiting for, in two words: `loading 43%`."""
        done, total = self._performer.progress().get(ref.model, (0, 0))
        state = status.state_of(self._state.board, ref.model, self._now())
        doing = {"locating": "downloading", "ready": "working"}.get(state, state)
        return f"{doing} {100 * done // total}%" if total and state in ("locating", "loading") else doing

    def model_status(self, name: str) -> ModelStatus:
        """One model, by id or alias; an adapter's name means its base. Raises ModelNotFound or AdapterNotFound."""
        return self._status(self._model(name))

    def overview(self) -> Overview:
        """Everything there is to say of Residents, the queue and what was resident before."""
        board, at, progress = self._state.board, self._now(), self._performer.progress()
        reload = None if self._reload is None else replace(self._reload[1], seconds_ago=round(at - self._reload[0], 3))
        return Overview(
            version=__version__,
            uptime_seconds=round(at - self._started, 3),
            memory=status.memory(board),
            queued=board.queued,
            preload=self.preloads,
            reload=reload,
            models=tuple(status.model_status(board, model, at, progress) for model in status.noteworthy(board)),
            max_queued=board.policy.max_queued,
        )

    def lists(self, model: str, adapter: str | None) -> bool:
        """Whether the roster itself has a model, by its canonical name, or an adapter of it."""
        entry = self.catalog.entries.get(model)
        return entry is not None and (adapter is None or adapter in entry.adapters)

    def counters(self) -> dict[str, Counters]:
        """By model: what its workers have done since the server started, and what those of now are doing."""
        return self._performer.counters()

    @asynccontextmanager
    async def changes(self) -> AsyncIterator[Follower]:
        """`async with registry.changes() as changes: async for item in changes`: an Overview first, then a Change for
        each decision; and another Overview where the reader has fallen far behind."""
        with self._journal.follow() as follower:
            yield follower

    def listen(self, listener: Callable[[Change], None]) -> None:
        """Have `listener` called with every Change, on the event loop, as long as the registry lives."""
        self._journal.listen(listener)

    def _model(self, name: str) -> str:
        """The model that an operator means: one that is no longer in the roster too, as long as it is not gone."""
        if self._state.board.ledger.departing(name):
            return name
        return self.catalog.resolve(name).model

    def _status(self, model: str) -> ModelStatus:
        return status.model_status(self._state.board, model, self._now(), self._performer.progress())

    def _status_or_none(self, model: str) -> ModelStatus | None:
        known = model in self._state.board.terms or model in self._state.board.records
        return self._status(model) if known else None

    # What an operator may do. Names are ids or aliases; an adapter's means its base.

    async def load(self, name: str) -> ModelStatus:
        """Load a model, past limits and cooldowns. Returns when it is ready; raises what `lease` raises."""
        ref = Ref(self.catalog.resolve(name).model)
        async with self.lease(ref, exempt=True):
            pass
        return self._status(ref.model)

    def unload(self, name: str, *, force: bool = False) -> ModelStatus:
        """Begin to unload a model: after its last lease or, with `force`, now. How it stands then."""
        model = self._model(name)
        self._performer.feed(events.Withdraw(self._now(), model, force))
        return self._status(model)

    async def gone(self, name: str) -> ModelStatus:
        """Wait until no worker has the model any more that has it now."""
        model = self._model(name)
        await self._performer.gone(model)
        return self._status(model)

    def pin(self, name: str, pinned: bool) -> ModelStatus:
        """Keep a model from being unloaded, or no longer so, until its entry changes."""
        model = self.catalog.resolve(name).model
        self._performer.feed(events.Pin(self._now(), model, pinned))
        self._journal.say("pin", model, pinned=pinned)
        return self._status(model)

    # The roster

    def revision(self, roster: Roster) -> Revision:
        """What `apply` needs to know of `roster`. May be called on any thread."""
        return Revision.between(self.roster, roster, self._directory)

    def reconfigure(self, roster: Roster, budget: int) -> Revision:
        """`revision` and `apply` in one go."""
        revision = self.revision(roster)
        self.apply(revision, budget)
        return revision

    def apply(self, revision: Revision, budget: int) -> None:
        """Apply a roster that is known to be right, in one step.

        What is unchanged stays loaded, and no stream is cut. Adapters, names, limits and defaults change under it.
        """
        roster = self.roster = revision.roster
        self.catalog = revision.catalog
        policy = Policy.of(roster.scheduling, budget)
        self._performer.follow(self.catalog, policy, CatalogTerms(self.catalog, roster.scheduling))
        if (taken := self._state.board.ledger.committed) > budget:
            said = "models in use take %s, more than the budget of %s: nothing is loaded beside them"
            logger.warning(said, format_bytes(taken), format_bytes(budget))

    def reload_ended(self, reload: Reload) -> None:
        """Remember how the latest reload went."""
        self._reload = (self._now(), reload)
        # What was wrong has been logged where it was found.
        level = logging.INFO if reload.ok else logging.DEBUG
        names = {
            "added": reload.added,
            "changed": reload.changed,
            "removed": reload.removed,
            "settings": reload.settings,
        }
        shown = {what: ",".join(found) for what, found in names.items() if found}
        self._journal.say("reload", None, level, ok=reload.ok, error=reload.error, **shown)

    def start_preloads(self) -> None:
        """Load what is to be loaded at the start, one after the other in the roster's order."""
        names = [name for name, entry in self.roster.models.items() if entry.preload]
        self.preloads = Preloads(len(names))
        self._preloading = asyncio.get_running_loop().create_task(self._preload(names))

    async def _preload(self, names: list[str]) -> None:
        for name in names:
            try:
                async with self.lease(Ref(name), exempt=True):
                    pass
            except (ModelNotFound, Draining):
                pass  # it was taken out of the roster meanwhile, or unloaded by an operator
            except RosterError as error:
                logger.warning("preloading %s failed: %s", name, error)
                self.preloads = replace(self.preloads, failed=(*self.preloads.failed, name))
                continue
            self.preloads = replace(self.preloads, done=self.preloads.done + 1)
