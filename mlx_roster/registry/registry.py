"""The registry as the server sees it: resolve a name, hold a lease, list what there is.

It owns a `Residency`, performs the actions that come out of it and feeds the results back in as events. Everything
here runs on one event loop, and each event is decided without an await: there are no locks.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
import warnings
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Self

import msgspec

from mlx_roster.config import Defaults, Roster, format_bytes
from mlx_roster.core import AdapterSource, Generation, Located, Measured, ModelSource, Ref
from mlx_roster.errors import Draining, LoadFailed, LoadOutOfMemory, RosterError, WorkerCrashed
from mlx_roster.registry import events
from mlx_roster.registry.catalog import Catalog
from mlx_roster.registry.listing import Listing
from mlx_roster.registry.ports import Sources, Stream, Worker, Workers
from mlx_roster.registry.resident import State
from mlx_roster.registry.state import Residency

logger = logging.getLogger(__name__)


class Holding:
    """A Resident's side of the world: the job that loads it, then the worker that holds it, whose owner it is."""

    def __init__(self, model: str, serial: int, feed: Callable[[events.Event], None]) -> None:
        self.model = model
        self.serial = serial
        self.load: asyncio.Task[None] | None = None
        self.worker: Worker | None = None
        self.started = _now()
        self.loaded: float | None = None
        self.progress = (0, 0)
        self._feed = feed

    # ports.Owner

    def on_progress(self, done: int, total: int) -> None:
        self.progress = (done, total)

    def on_report(self, measured: Measured) -> None:
        self._feed(events.Reported(_now(), self.serial, measured.active, measured.growth))

    def on_death(self) -> None:
        logger.error("the worker of %s died", self.model)
        self._feed(events.Died(_now(), self.serial))


class Lease:
    """The right to use a Resident: it cannot be evicted before the `async with` that gave this is left."""

    def __init__(self, ref: Ref, worker: Worker, adapter: AdapterSource | None, wait_ms: float, load_ms: float) -> None:
        self.ref = ref
        self.wait_ms = wait_ms
        self.load_ms = load_ms
        self._worker = worker
        self._adapter = adapter

    def submit(self, generation: Generation) -> Stream:
        """Start a sequence on the Resident, through the adapter that the Ref names."""
        return self._worker.submit(msgspec.structs.replace(generation, adapter=self._adapter))


class Registry:
    """Leases on models under a budget of bytes. Use as an async context manager: leaving it stops all workers."""

    def __init__(self, roster: Roster, workers: Workers, sources: Sources, budget: int) -> None:
        self.catalog = Catalog(roster)
        self._roster = roster
        self._workers = workers
        self._sources = sources
        self._state = Residency(budget)
        self._created = int(time.time())
        # By serial, by model, by ticket.
        self._holdings: dict[int, Holding] = {}
        self._located: dict[str, Located] = {}
        self._waiting: dict[int, asyncio.Future[int]] = {}
        self._tickets = itertools.count(1)
        self._jobs: set[asyncio.Task[None]] = set()
        self._open = False

    async def __aenter__(self) -> Self:
        self._open = True
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._open = False
        for ticket, future in list(self._waiting.items()):
            if not future.done():
                future.set_exception(Draining("the server is shutting down"))
                self._feed(events.Leave(_now(), ticket))  # the last to leave a load cancels it
        while self._jobs:  # a load that ends may be followed by an unload
            await asyncio.gather(*self._jobs, return_exceptions=True)
        workers = [holding.worker for holding in self._holdings.values() if holding.worker is not None]
        for failed in await asyncio.gather(*(worker.stop() for worker in workers), return_exceptions=True):
            if failed is not None:
                logger.error("a worker could not be stopped", exc_info=failed)

    def __del__(self) -> None:
        if self._open:
            warnings.warn(f"{self!r} was dropped without being closed", ResourceWarning, stacklevel=1)

    def __repr__(self) -> str:
        return repr(self._state).replace("Residency", "Registry", 1)

    def validate(self) -> None:
        """Raise AssertionError where an invariant of the state, or of this shell over it, is broken."""
        self._state.validate()
        assert self._holdings.keys() <= self._state.residents.keys(), f"a worker without a Resident: {self!r}"
        ready = [serial for serial, r in self._state.residents.items() if r.state is State.READY]
        assert all(self._holdings[serial].worker is not None for serial in ready), f"ready without a worker: {self!r}"
        assert self._state.queue.keys() <= self._waiting.keys(), f"a waiter that nobody awaits: {self!r}"

    # What the server asks

    def resolve(self, model: str | None, adapters: str | None = None) -> Ref:
        """What a request's words mean; see `Catalog.resolve`."""
        return self.catalog.resolve(model, adapters)

    def defaults(self, ref: Ref) -> Defaults:
        """Request defaults for `ref`: the entry's own, then the file's; None where neither says anything."""
        entry = self.catalog.entries[ref.model].defaults.model_dump(exclude_none=True)
        return self._roster.defaults.model_copy(update=entry)

    @asynccontextmanager
    async def lease(self, ref: Ref) -> AsyncIterator[Lease]:
        """Wait for `ref`'s model to be ready and hold it until the block ends.

        Raises ModelTooLarge, LoadFailed, WorkerCrashed or Draining. Cancelling the wait gives the place up.
        """
        asked = _now()
        estimate = await self._estimate(ref.model)
        if not self._open:  # after the last await before the queue: nothing joins it once it has been emptied
            raise Draining("the server is shutting down")
        ticket = next(self._tickets)
        granted = self._waiting[ticket] = asyncio.get_running_loop().create_future()
        try:
            self._feed(events.Acquire(_now(), ticket, ref.model, estimate))
            yield self._lease(ref, await granted, asked)
        finally:
            del self._waiting[ticket]
            self._feed(events.Leave(_now(), ticket))

    def listing(self) -> list[Listing]:
        """Every model and adapter of the catalog, loaded or not. Resets no timer."""
        return [self._listed(ref) for ref in self.catalog]

    def find(self, name: str) -> Listing:
        """One of them, by id or alias. Raises ModelNotFound or AdapterNotFound."""
        return self._listed(self.catalog.resolve(name))

    def status(self) -> dict[str, int]:
        """How many Residents are in which state."""
        states = [resident.state for resident in self._state.residents.values()]
        return {state.value: states.count(state) for state in (State.LOADING, State.READY, State.UNLOADING)}

    def progress(self) -> dict[str, tuple[int, int]]:
        """The loads that are going on: model → (bytes loaded, bytes in all)."""
        return {h.model: h.progress for h in self._holdings.values() if h.loaded is None}

    # Inside

    async def _estimate(self, model: str) -> int:
        """Bytes that `model` is expected to take. Without an await where it is known already."""
        located = self._located.get(model)
        if located is None:
            located = self._located[model] = await self._sources.locate(model, self.catalog.entries[model])
        return located.estimate

    def _lease(self, ref: Ref, serial: int, asked: float) -> Lease:
        holding = self._holdings.get(serial)
        if holding is None or holding.worker is None or holding.loaded is None:
            raise WorkerCrashed(f"the worker of {ref.model} died before the request reached it")
        load = max(0.0, holding.loaded - max(asked, holding.started))
        spec = self.catalog.adapter(ref)
        adapter = None if spec is None else AdapterSource(ref.id, str(spec.source), spec.pin)
        return Lease(ref, holding.worker, adapter, (_now() - asked) * 1000, load * 1000)

    def _listed(self, ref: Ref) -> Listing:
        entry = self.catalog.entries[ref.model]
        spec = self.catalog.adapter(ref)
        resident = self._state.resident(ref.model)
        located = self._located.get(ref.model)
        return Listing(
            id=ref.id,
            parent=None if spec is None else ref.model,
            created=self._created,
            aliases=tuple(entry.aliases if spec is None else spec.aliases),
            adapters=tuple(entry.adapters) if spec is None else (),
            state="unloaded" if resident is None else resident.state.value,
            estimated=None if located is None else located.estimate,
            measured=None if resident is None else resident.measured,
            in_flight=0 if resident is None else len(resident.leases),
            queued=self._state.waiting(ref.model),
            max_context=entry.max_context,
        )

    def _feed(self, event: events.Event) -> None:
        """Hand one event to the state and perform what comes out."""
        if isinstance(event, events.LoadFailed | events.Died | events.Unloaded):
            self._holdings.pop(event.serial, None)
        for action in self._state.handle(event):
            self._perform(action)

    def _perform(self, action: events.Action) -> None:
        match action:
            case events.Grant(ticket, serial):
                if not self._waiting[ticket].done():
                    self._waiting[ticket].set_result(serial)
            case events.Refuse(ticket, error):
                logger.info("refused: %s", error)
                if not self._waiting[ticket].done():
                    self._waiting[ticket].set_exception(error)
            case events.StartLoad(model, serial, size):
                logger.info("loading %s, %s", model, format_bytes(size))
                holding = self._holdings[serial] = Holding(model, serial, self._feed)
                holding.load = self._job(self._load(holding, self._source(model)))
                holding.load.add_done_callback(lambda load: self._load_ended(holding, load))
            case events.CancelLoad(serial):
                logger.info("nobody waits for %s any more", self._holdings[serial].model)
                load = self._holdings[serial].load
                assert load is not None
                load.cancel()
            case events.Unload(serial):
                logger.info("unloading %s", self._holdings[serial].model)
                self._job(self._unload(self._holdings[serial]))

    def _source(self, model: str) -> ModelSource:
        entry, located = self.catalog.entries[model], self._located[model]
        return ModelSource(
            name=model,
            path=located.path,
            memory=self._state.budget,
            max_concurrency=entry.max_concurrency,
            max_context=entry.max_context,
            max_adapters=entry.max_adapters,
            prompt_cache_entries=entry.prompt_cache.entries,
            prompt_cache_bytes=entry.prompt_cache.budget,
            bank=located.bank,
        )

    def _job(self, coroutine: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._jobs.add(task)
        task.add_done_callback(self._jobs.discard)
        return task

    async def _load(self, holding: Holding, source: ModelSource) -> None:
        """A load job: ends in Loaded or LoadFailed, or is cancelled: see `_load_ended`."""
        serial = holding.serial
        try:
            worker = await self._workers.load(source, holding)
        except RosterError as error:
            logger.warning("loading %s failed: %s", source.name, error)
            self._load_failed(serial, source.name, error)
        except Exception:
            logger.exception("loading %s failed", source.name)
            self._load_failed(serial, source.name, LoadFailed(f"{source.name} could not be loaded"))
        else:
            holding.worker, holding.loaded = worker, _now()
            took, measured = holding.loaded - holding.started, worker.measured
            logger.info("loaded %s in %.1f s, %s", source.name, took, format_bytes(measured.active))
            self._feed(events.Loaded(holding.loaded, serial, measured.active, measured.growth))

    def _load_ended(self, holding: Holding, load: asyncio.Task[None]) -> None:
        """Not part of the job: one that is cancelled before its first step never runs."""
        if load.cancelled():
            self._feed(events.Unloaded(_now(), holding.serial))

    def _load_failed(self, serial: int, model: str, error: RosterError) -> None:
        oom = isinstance(error, LoadOutOfMemory)
        self._feed(events.LoadFailed(_now(), serial, error, out_of_memory=oom))
        if not oom and self._state.resident(model) is None:
            # The files may have changed under us: look at them again next time.
            self._located.pop(model, None)

    async def _unload(self, holding: Holding) -> None:
        assert holding.worker is not None
        try:
            await holding.worker.stop()
        finally:
            # Whatever went wrong, those who wait for the room must not wait for ever.
            self._feed(events.Unloaded(_now(), holding.serial))


def _now() -> float:
    return time.monotonic()
