"""What a decision of the registry takes: 10,000 models in the catalog, 64 of them resident, and none or many waiting.

    python -m bench.decisions                          about half a minute
    python -m bench.decisions --profile Acquire        and where the time of the kinds of event with that word goes

A sample is one event, as the registry's shell has it: `state.handle`, and `state.wake` after it. And what `/v1/models`
takes: the registry's listing, and the server's answer made of it. Times are of the processor, not of the clock.
"""

from __future__ import annotations

import argparse
import cProfile
import itertools
import json
import pstats
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mlx_roster.config import AdapterEntry, ModelEntry, Roster
from mlx_roster.registry import events, status
from mlx_roster.registry.catalog import Catalog
from mlx_roster.registry.events import Action, Event
from mlx_roster.registry.policy import Policy
from mlx_roster.registry.state import Residency
from mlx_roster.registry.tenancy import CatalogTerms
from mlx_roster.server.openai.models import entry
from mlx_roster.server.reply import reply

MODELS = 10_000
RESIDENTS = 64

#: Bytes of a resident model. What is waited for is larger than all idle ones together.
SIZE = 2**30
LARGE = RESIDENTS // 2 * SIZE + SIZE

#: Seconds from one event to the next. Nobody waits for long enough to have a busy model drained.
STEP = 1e-4

#: How many requests wait, and for how many models.
CASES = (("nobody waits", 0, 0), ("200 wait for 10 models", 200, 10), ("200 wait for 200 models", 200, 200))


def roster_of(models: int, adapters: int = 0) -> Roster:
    entries = {
        f"org/model-{number:05}-4bit": ModelEntry(
            source=Path(f"/models/{number:05}"),
            aliases=(f"alias-{number:05}",),
            adapters={f"a{each:05}": AdapterEntry(source=Path(f"/adapters/{each:05}")) for each in range(adapters)},
        )
        for number in range(models)
    }
    return Roster(models=entries)


class Subject:
    """A Residency at work: half of its Residents are in use. `took` has the seconds of each kind of event."""

    def __init__(self, roster: Roster, waiting: int, models: int, profiled: str | None) -> None:
        self.catalog = Catalog(roster)
        self.scheduling = roster.scheduling
        # Loads take no time here, and so nothing is fresh.
        self.policy = replace(Policy.of(roster.scheduling, RESIDENTS * SIZE), min_residency=0.0)
        self.state = Residency(self.policy, self.terms())
        self.took: dict[str, list[float]] = {}
        self.profile = cProfile.Profile()
        self._profiled = profiled
        self._at = 0.0
        self._tickets = itertools.count(1)
        self._models = iter(self.catalog.entries)
        self._serials: dict[int, str] = {}
        #: One more model of the same size than there is room for.
        self.out = self._resident()
        self.feed(events.Withdraw(self.now(), self.out))
        self.feed(events.Unloaded(self.now(), 1))
        self.busy = [self._resident(leave=False) for _ in range(RESIDENTS // 2)]
        for _ in range(RESIDENTS // 2):
            self._resident()
        awaited = [next(self._models) for _ in range(models)]
        for number in range(waiting):
            self._wait_for(awaited[number % models])

    def terms(self) -> CatalogTerms:
        return CatalogTerms(self.catalog, self.scheduling)

    def now(self) -> float:
        self._at += STEP
        return self._at

    def feed(self, event: Event, kind: str = "") -> list[Action]:
        profiled = self._profiled is not None and self._profiled in kind
        if profiled:
            self.profile.enable()
        began = time.thread_time()
        actions = self.state.handle(event)
        self.state.wake  # noqa: B018 - it is worked out when asked for
        took = time.thread_time() - began
        if profiled:
            self.profile.disable()
        self.took.setdefault(kind, []).append(took)
        self._serials.update(
            (action.serial, action.model) for action in actions if isinstance(action, events.StartLoad)
        )
        return actions

    def acquire(self, model: str, kind: str = "") -> int:
        ticket = next(self._tickets)
        for action in self.feed(events.Acquire(self.now(), ticket, model), kind):
            if isinstance(action, events.Locate):
                self.feed(events.Located(self.now(), action.job, SIZE))
        return ticket

    def serial(self, model: str) -> int:
        """Of the model's latest load."""
        return next(serial for serial, name in reversed(self._serials.items()) if name == model)

    def _resident(self, *, leave: bool = True) -> str:
        model = next(self._models)
        ticket = self.acquire(model)
        self.feed(events.Loaded(self.now(), self.serial(model), SIZE))
        if leave:
            self.feed(events.Leave(self.now(), ticket))
        return model

    def _wait_for(self, model: str) -> None:
        for action in self.feed(events.Acquire(self.now(), next(self._tickets), model)):
            if isinstance(action, events.Locate):
                self.feed(events.Located(self.now(), action.job, LARGE))

    def swap(self) -> None:
        """Somebody wants a model of known size, and the idle one least recently used makes room for it."""
        ticket = next(self._tickets)
        wanted = self.out
        actions = self.feed(
            events.Acquire(self.now(), ticket, wanted), "Acquire of a cold one, which evicts an idle one"
        )
        (victim,) = (action.serial for action in actions if isinstance(action, events.Unload))
        self.out = self._serials.pop(victim)
        self.feed(events.Unloaded(self.now(), victim), "Unloaded: the load that waits for it starts")
        self.feed(events.Loaded(self.now(), self.serial(wanted), SIZE), "Loaded: its waiter gets the lease")
        self.feed(events.Leave(self.now(), ticket), "Leave, the last: it is idle")

    def use(self, model: str) -> None:
        ticket = self.acquire(model, "Acquire of a resident one")
        serial = self.serial(model)
        self.feed(events.Progressed(self.now(), serial, self._at), "Progressed")
        self.feed(events.Reported(self.now(), serial, SIZE), "Reported")
        self.feed(events.Leave(self.now(), ticket), "Leave, others have leases")

    def queue(self, model: str) -> None:
        ticket = self.acquire(model, "Acquire of one that has to wait")
        self.feed(events.Leave(self.now(), ticket), "Leave of one that waits")
        self.feed(events.Tick(self.now()), "Tick, nothing is due")

    def configure(self) -> None:
        self.feed(events.Configure(self.now(), self.policy, self.terms()), "Configure: nothing has changed")


def measure(subject: Subject, rounds: int) -> None:
    lines = subject.state.board.queue.lines
    waits = list(lines) or [subject.out]
    for number in range(rounds):
        subject.swap()
        subject.use(subject.busy[number % len(subject.busy)])
        if lines:
            subject.queue(waits[number % len(waits)])
        subject.feed(events.Tick(subject.now()), "Tick, nothing is due")
    for _ in range(50):
        subject.configure()
    subject.state.validate()
    del subject.took[""]


def listings(roster: Roster) -> dict[str, list[float]]:
    """Of as many models, and of one model with as many adapters, as `Registry.listing` and the server do it."""
    took: dict[str, list[float]] = {}
    cases = {f"/v1/models of {MODELS:,} models": roster, f"of one with {MODELS:,} adapters": roster_of(1, MODELS)}
    for kind, each in cases.items():
        catalog = Catalog(each)
        board = Residency(Policy.of(each.scheduling, SIZE), CatalogTerms(catalog, each.scheduling)).board
        for _ in range(20):
            began = time.thread_time()
            lister = status.Lister(board, catalog, 0, 0.0)
            reply({"object": "list", "data": [entry(lister.listed(ref)) for ref in catalog]})
            took.setdefault(kind, []).append(time.thread_time() - began)
    return took


def show(columns: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
    table = Table("microseconds: median (p99)", *columns)
    for kind in dict.fromkeys(kind for took in columns.values() for kind in took):
        table.add_row(kind, *(_cell(took.get(kind, ())) for took in columns.values()))
    # A pipe has no width, and the table is wider than the default.
    Console(width=None if sys.stdout.isatty() else 140).print(table)


def _cell(samples: Sequence[float]) -> str:
    if not samples:
        return ""
    p99 = statistics.quantiles(samples, n=100, method="inclusive")[98]
    return f"{1e6 * statistics.median(samples):,.0f} ({1e6 * p99:,.0f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1000, help="events of most kinds (default: %(default)s)")
    parser.add_argument("--profile", metavar="WORDS", help="print where the time of such kinds of event goes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample there, too")
    arguments = parser.parse_args()
    roster = roster_of(MODELS)
    columns = {}
    for name, waiting, models in CASES:
        subject = Subject(roster, waiting, models, arguments.profile)
        measure(subject, arguments.rounds)
        columns[name] = subject.took
        if arguments.profile:
            print(name)
            pstats.Stats(subject.profile).sort_stats("tottime").print_stats(15)
    columns[CASES[0][0]].update(listings(roster))
    show(columns)
    if arguments.json:
        arguments.json.write_text(json.dumps(columns) + "\n")


if __name__ == "__main__":
    main()
