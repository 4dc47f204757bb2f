"""A Resident's side of the world, and a request's right to it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import msgspec

from mlx_roster.config import ModelEntry
from mlx_roster.core import AdapterSource, Generation, Located, Measured, Ref
from mlx_roster.registry import events
from mlx_roster.registry.ports import Stream, Worker


class Holding:
    """The job that loads a Resident, then the worker that holds it, whose owner it is."""

    def __init__(
        self,
        model: str,
        serial: int,
        entry: ModelEntry,
        located: Located,
        feed: Callable[[events.Event], None],
        clock: Callable[[], float],
    ) -> None:
        self.model = model
        self.serial = serial
        #: What its worker was last told, and what that was reckoned from.
        self.entry = entry
        self.located = located
        self.load: asyncio.Task[None] | None = None
        self.worker: Worker | None = None
        self.started = self._heard = clock()
        self.loaded: float | None = None
        self.progress = (0, 0)
        #: Its worker got nowhere for too long, and is being ended.
        self.hung = False
        self._feed = feed
        self._now = clock

    @property
    def progressed(self) -> float:
        """When the load, or what its worker runs, last got any further."""
        return self._heard if self.worker is None else self.worker.progressed

    # core.Owner

    def on_progress(self, done: int, total: int) -> None:
        self.progress, self._heard = (done, total), self._now()

    def on_report(self, measured: Measured) -> None:
        self._feed(
            events.Reported(self._now(), self.serial, measured.active, measured.growth, measured.prompts),
        )

    def on_death(self) -> None:
        self._feed(events.Died(self._now(), self.serial))


class Lease:
    """The right to use a Resident: it cannot be evicted before the `async with` that gave this is left."""

    def __init__(self, ref: Ref, worker: Worker, adapter: AdapterSource | None, wait_ms: float, load_ms: float) -> None:
        self.ref = ref
        self.wait_ms = wait_ms
        self.load_ms = load_ms
        #: What the Resident can do.
        self.capabilities = worker.capabilities
        self._worker = worker
        self._adapter = adapter

    def submit(self, generation: Generation) -> Sequence[Stream]:
        """Start sequences on the Resident, through the adapter that the Ref names."""
        return self._worker.submit(msgspec.structs.replace(generation, adapter=self._adapter))
