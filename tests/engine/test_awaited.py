"""What an engine says of how long it has been at one thing: from another thread, while one of its own is stuck."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlx_roster.core import AdapterSource, Counters, Delta, Generation, Measured, ModelSource
from mlx_roster.engine.loop import Engine
from mlx_roster.errors import AdapterIncompatible, RosterError
from mlx_roster.loaders.models import load
from mlx_roster.tensors import AdapterWeights, Targets
from tests.engine import tiny

#: Longer than anything here takes.
PATIENCE = 60


class Gate:
    """An output, and a reader of adapters, that can be held up: by a server that does not read, by a disk."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.open.set()
        self.readable = threading.Event()
        self.held = threading.Event()
        self.reading = threading.Event()
        self.finished: set[int] = set()
        self.refused: list[int] = []
        self.moved = threading.Condition()

    def step(self, deltas: list[Delta]) -> None:
        if not self.open.is_set():
            self.held.set()
        assert self.open.wait(PATIENCE)
        with self.moved:
            self.finished.update(delta.sequence for delta in deltas if delta.finish is not None)
            self.moved.notify_all()

    def rejected(self, sequence: int, error: RosterError) -> None:
        with self.moved:
            self.refused.append(sequence)
            self.moved.notify_all()

    def report(self, measured: Measured) -> None: ...

    def counted(self, counters: Counters) -> None: ...

    def known(self, source: AdapterSource) -> str | None:
        return None

    def read(self, source: AdapterSource, targets: Targets) -> AdapterWeights:
        self.reading.set()
        assert self.readable.wait(PATIENCE)
        raise AdapterIncompatible("it is none", param="adapters")

    def until(self, *finished: int) -> None:
        with self.moved:
            assert self.moved.wait_for(lambda: self.finished >= {*finished}, PATIENCE)


@contextmanager
def running(model: Path, gate: Gate) -> Iterator[Engine]:
    """An engine on a thread of its own."""
    source = ModelSource(name="tiny", path=str(model), memory=2**30, max_adapters=2)
    made: list[Engine] = []
    ready = threading.Event()

    def serve() -> None:
        with Engine(load(source, lambda done, total: None), source, gate, gate) as engine:
            made.append(engine)
            ready.set()
            engine.run()

    thread = threading.Thread(target=serve)
    thread.start()
    assert ready.wait(PATIENCE)
    try:
        yield made[0]
    finally:
        gate.open.set()
        gate.readable.set()
        made[0].stop()
        thread.join(PATIENCE)
        assert not thread.is_alive()


def rests(engine: Engine) -> None:
    """Wait until it has nothing to do."""
    deadline = time.monotonic() + PATIENCE
    while engine.awaited is not None:
        assert time.monotonic() < deadline, engine.awaited


def test_an_engine_with_nothing_to_do_is_not_awaited(model: Path) -> None:
    gate = Gate()
    with running(model, gate) as engine:
        rests(engine)
        engine.submit(1, tiny.request([40, 41], 5))
        gate.until(1)
        rests(engine)


def test_a_step_that_does_not_end_is_seen(model: Path) -> None:
    gate = Gate()
    with running(model, gate) as engine:
        gate.open.clear()
        before = time.monotonic()
        engine.submit(1, tiny.request([40, 41], 5))
        assert gate.held.wait(PATIENCE)
        since = engine.awaited
        assert since is not None
        assert before <= since <= time.monotonic()
        engine.submit(2, tiny.request([40, 41], 5))
        engine.cancel(1)  # whoever gives up, and whoever comes: it is at the same thing still
        assert engine.awaited == since
        gate.open.set()
        gate.until(2)
        rests(engine)


def test_a_request_that_is_stuck_before_it_reaches_the_engine_is_seen_while_others_run(model: Path) -> None:
    gate = Gate()
    with running(model, gate) as engine:
        before = time.monotonic()
        adapted = Generation(tiny.request([40, 41], 5).prompt, max_tokens=5, adapter=AdapterSource("slow", "/slow"))
        engine.submit(1, adapted)
        assert gate.reading.wait(PATIENCE)
        since = engine.awaited
        for number in range(2, 5):
            engine.submit(number, tiny.request([40, 41], 5))
            gate.until(number)
        assert engine.awaited == since
        assert since is not None
        assert since >= before
        engine.cancel(1)
        assert engine.awaited == since
        gate.readable.set()
        rests(engine)
