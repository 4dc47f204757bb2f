"""Fakes that we ship: workers without processes or weights, for tests of whatever stands above `workers/`.

They keep a `history` of what was asked of them, and in `wrongs` what must never be asked: a test ends by looking there.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from mlx_roster.config import ModelEntry
from mlx_roster.core import (
    Capabilities,
    Counters,
    Delta,
    Generation,
    Limits,
    Located,
    Measured,
    ModelSource,
    Owner,
    Usage,
)
from mlx_roster.errors import RosterError, WorkerCrashed
from mlx_roster.workers.stream import SequenceStream

#: What a fake model says to a request, piece by piece. A Delta says more than text; its `sequence` is of no concern,
#: and the `finish` and `usage` of the last one are said, too.
Script = Callable[[Generation], Sequence[str | Delta]]


def hello(_: Generation) -> Sequence[str | Delta]:
    """The script of a fake that was given none."""
    return ["Hello", " there", "!"]


class FakeWorker:
    """A loaded model that says what its script says, one piece per turn of the event loop."""

    def __init__(self, source: ModelSource, parent: FakeWorkers, owner: Owner) -> None:
        self.source = source
        self.measured = Measured(active=parent.sizes.get(source.name, 1), growth=source.limits.bank)
        capabilities = Capabilities(vocabulary=512, context=source.limits.max_context, adapters=True)
        self.capabilities = msgspec.structs.replace(capabilities, **parent.capabilities.get(source.name, {}))
        self.progressed = time.monotonic()
        #: Set by a test: it hangs, since then.
        self.awaited: float | None = None
        self._counted = Counters()
        # The adapters in its slots, the last used last.
        self._placed: list[str] = []
        #: What it was last told it may take, and to live by.
        self.shared: int | None = None
        self.limits = source.limits
        self.running: dict[int, SequenceStream] = {}
        self._parent = parent
        self._owner = owner
        self._sequences = 0
        self._tasks: dict[int, asyncio.Task[None]] = {}

    def submit(self, generation: Generation) -> list[SequenceStream]:
        return [self._start(generation, first=not index) for index in range(generation.n)]

    @property
    def counters(self) -> Counters:
        slots = self.source.max_adapters
        return self._counted + Counters(running=len(self.running), slots=slots, filled=len(self._placed))

    def _place(self, adapter: str) -> None:
        if adapter in self._placed:
            self._placed.remove(adapter)
        else:
            full = len(self._placed) >= max(1, self.source.max_adapters)
            if full:
                self._placed.pop(0)
            self._counted += Counters(placed=1, displaced=int(full))
        self._placed.append(adapter)

    def _start(self, generation: Generation, *, first: bool) -> SequenceStream:
        self._sequences += 1
        sequence = self._sequences
        adapter = f" with {generation.adapter.name}" if generation.adapter else ""
        self._parent.note(f"submit {self.source.name}{adapter}")
        if generation.adapter:
            self._place(generation.adapter.name)
        stream = self.running[sequence] = SequenceStream(lambda: self._cancel(sequence))
        self._tasks[sequence] = asyncio.get_running_loop().create_task(
            self._say(sequence, stream, generation, first=first)
        )
        return stream

    def share(self, size: int) -> None:
        self.shared = size

    def limit(self, limits: Limits) -> None:
        self.limits = limits
        self._parent.note(f"limit {self.source.name}")

    def cut(self, error: RosterError) -> None:
        self._parent.note(f"cut {self.source.name}")
        self._end(error)

    async def stop(self) -> None:
        self._parent.note(f"stop {self.source.name}")
        if self.running:
            self._parent.wrongs.append(f"{self.source.name} was stopped while {len(self.running)} sequences ran on it")
        await self._parent.gate(f"stop {self.source.name}").wait()

    async def kill(self) -> None:
        self._parent.note(f"kill {self.source.name}")
        await self._parent.gate(f"stop {self.source.name}").wait()

    def report(self, active: int, bank: int = 0, prompts: int = 0) -> None:
        """The worker says that it holds so many bytes now, so many of them in its bank and its prompt cache."""
        self.measured = Measured(active=active, growth=max(0, self.limits.bank - bank), prompts=prompts)
        self._owner.on_report(self.measured)

    def die(self) -> None:
        """The worker is lost: its streams fail and its owner is told."""
        self._parent.note(f"die {self.source.name}")
        self._end(WorkerCrashed(f"the worker of {self.source.name} died"))
        self._owner.on_death()

    def _end(self, error: RosterError) -> None:
        for task in self._tasks.values():
            task.cancel()
        running, self.running = self.running, {}
        for stream in running.values():
            stream.fail(error)

    async def _say(self, sequence: int, stream: SequenceStream, generation: Generation, *, first: bool) -> None:
        pieces = self._parent.script(generation)
        try:
            for count, piece in enumerate(pieces, 1):
                await self._parent.gate(f"token {self.source.name}").wait()
                await asyncio.sleep(0)
                delta = msgspec.structs.replace(
                    piece if isinstance(piece, Delta) else Delta(0, piece), sequence=sequence
                )
                if count == len(pieces):
                    usage = delta.usage or Usage(prompt=1, completion=count)
                    if first:  # the others of one prompt take it from this one
                        self._counted += Counters(queried=usage.prompt, hits=usage.cached)
                    delta = msgspec.structs.replace(delta, finish=delta.finish or "stop", usage=usage)
                    del self.running[sequence]
                self.progressed = time.monotonic()
                self._counted += Counters(steps=1)
                stream.push(delta)
        except RosterError as error:
            del self.running[sequence]
            stream.fail(error)

    def _cancel(self, sequence: int) -> None:
        if self.running.pop(sequence, None) is not None:
            self._parent.note(f"cancel {self.source.name}")
            self._tasks[sequence].cancel()


class FakeWorkers:
    """A `registry.ports.Workers` without processes.

    `gate(what)` is an event that "load NAME", "stop NAME" and "token NAME" wait for; all are open until `hold(what)`.
    `failures[name]` is a list of errors that the next loads of that model end with; `capabilities[name]` are those in
    which it differs from other fakes.
    """

    def __init__(self, script: Script = hello, sizes: dict[str, int] | None = None) -> None:
        self.script = script
        self.sizes = sizes or {}
        self.failures: dict[str, list[RosterError]] = {}
        self.capabilities: dict[str, dict[str, Any]] = {}
        self.history: list[str] = []
        self.wrongs: list[str] = []
        self.workers: dict[str, FakeWorker] = {}
        self._gates: dict[str, asyncio.Event] = {}
        self._noted = asyncio.Event()

    def gate(self, what: str) -> asyncio.Event:
        if what not in self._gates:
            self._gates[what] = asyncio.Event()
            self._gates[what].set()
        return self._gates[what]

    def hold(self, what: str) -> asyncio.Event:
        """Close a gate; set the event that comes back to open it."""
        self.gate(what).clear()
        return self.gate(what)

    def note(self, what: str) -> None:
        self.history.append(what)
        self._noted.set()

    async def seen(self, what: str, times: int = 1) -> None:
        """Wait until `what` is in the history so many times."""
        while self.history.count(what) < times:
            self._noted.clear()
            await self._noted.wait()

    async def load(self, source: ModelSource, owner: Owner) -> FakeWorker:
        self.note(f"load {source.name}")
        try:
            await self.gate(f"load {source.name}").wait()
        except asyncio.CancelledError:
            self.note(f"cancel load {source.name}")
            raise
        if self.failures.get(source.name):
            raise self.failures[source.name].pop(0)
        owner.on_progress(1, 1)
        worker = self.workers[source.name] = FakeWorker(source, self, owner)
        return worker


class FakeSources:
    """A `registry.ports.Sources` in which every model is here and takes `sizes[name]` bytes, 1 by default.

    Of these, `banks[name]` are for its adapters, 0 by default. A name in `gates` is downloaded until its event is set;
    `failures[name]` are errors that the next searches end with. A name in `queued` waits for its turn to be downloaded.
    """

    def __init__(self, sizes: dict[str, int] | None = None, banks: dict[str, int] | None = None) -> None:
        self.sizes = sizes or {}
        self.banks = banks or {}
        self.located: list[str] = []
        self.gates: dict[str, asyncio.Event] = {}
        self.failures: dict[str, list[RosterError]] = {}
        self.downloads: dict[str, tuple[int, int]] = {}
        self.queued: set[str] = set()

    def progress(self) -> dict[str, tuple[int, int]]:
        return self.downloads

    def waiting(self) -> set[str]:
        return self.queued

    async def locate(self, name: str, entry: ModelEntry) -> Located:
        self.located.append(name)
        if name in self.gates:
            assert name not in self.downloads, f"{name} is looked for twice at once"
            self.downloads[name] = (0, 1)
            try:
                await self.gates[name].wait()
            finally:
                del self.downloads[name]
        if self.failures.get(name):
            raise self.failures[name].pop(0)
        return Located(path=f"/fake/{name}", estimate=self.sizes.get(name, 1), bank=self.banks.get(name, 0))
