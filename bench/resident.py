"""What an engine holds with more and more adapters in its bank, in a process of its own.

    python -m bench.resident MODEL

Commands come as JSON lines on standard input, answers go to standard output (`servers.Lines`): a command is a list of
adapters' folders, each of which is used once; the answer is bytes, when the engine has come to rest.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import psutil

from bench.fleet import SLOTS
from mlx_roster.core import AdapterSource, Counters, Delta, Generation, Limits, Measured, ModelSource, Sampling, Tokens
from mlx_roster.engine.loop import Engine
from mlx_roster.errors import RosterError
from mlx_roster.loaders.adapters import Adapters
from mlx_roster.loaders.models import load


class Told:
    """An engine's output that keeps the reports."""

    def __init__(self) -> None:
        self.reports: list[Measured] = []

    def step(self, deltas: list[Delta]) -> None:
        pass

    def rejected(self, sequence: int, error: RosterError) -> None:
        raise error

    def report(self, measured: Measured) -> None:
        self.reports.append(measured)

    def counted(self, counters: Counters) -> None:
        pass


class Opened(Engine):
    """An engine whose bank can be looked at, turned by hand."""

    @property
    def bank(self) -> int:
        """Bytes of all stacks, padding and empty slots included."""
        return self._bank.nbytes

    def use(self, adapters: list[str | None], said: Told) -> int:
        """Generate with each, and come to rest. Returns bytes in use."""
        for number, path in enumerate(adapters):
            adapter = None if path is None else AdapterSource(Path(path).name, path)
            self.submit(number, Generation(Tokens([9, 8, 7, 6]), 2, Sampling(temperature=0.0), adapter=adapter))
        said.reports.clear()
        while not said.reports:
            self.turn()
        return said.reports[-1].active


def main(model: str) -> None:
    # No prefix cache: what is looked at is the adapters.
    memory = psutil.virtual_memory().total
    source = ModelSource("base", model, memory, Limits(prompt_cache_entries=0), max_adapters=SLOTS)
    said = Told()
    with Opened(load(source, lambda done, total: None), source, said, Adapters()) as engine:
        print(json.dumps({"active": engine.use([None], said), "bank": engine.bank}), flush=True)
        for line in sys.stdin:
            print(json.dumps({"active": engine.use(json.loads(line), said), "bank": engine.bank}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
