"""A World that remembers what happened in it, and a real Registry over fake workers to which the same happens."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlx_roster.config import Multiple, Roster
from mlx_roster.core import Generation, ModelSource, Owner, Ref, Text
from mlx_roster.errors import RosterError
from mlx_roster.registry import Registry, events
from mlx_roster.registry.events import Action, Event
from mlx_roster.registry.holding import Holding
from mlx_roster.registry.policy import Policy, Terms
from mlx_roster.registry.rounds import LATE
from mlx_roster.testing import FakeSources, FakeWorker, FakeWorkers
from tests.registry.world import ENTRIES, SIZES, Snapshot, World

HELLO = Generation(Text("hi"), max_tokens=10)

#: What the workers of these models may still come to take once they are loaded.
BANKS = {"b": 1, "d": 2}


class RecordedWorld(World):
    """It is as a Registry's: a cancelled load is gone at once, and all workers of a model stop together."""

    def __init__(self, policy: Policy) -> None:
        super().__init__(policy)
        #: What happened, with the state after it and after all that followed from it at once.
        self.past: list[tuple[Event, Snapshot]] = []
        #: How each ticket fared, and what was asked of workers.
        self.fates: dict[int, str] = {}
        self.asked: Counter[str] = Counter()
        self._stopping: dict[int, str] = {}

    def feed(self, event: Event) -> list[Action]:
        actions = self._then(event)
        self.note(event)
        return actions

    def note(self, event: Event) -> None:
        """That was it: what has fallen due meanwhile is done, too."""
        while self.state.wake <= self.at:
            self._then(events.Tick(self.at))
        self.past.append((event, Snapshot.of(self.state)))

    def _then(self, event: Event) -> list[Action]:
        workers = {serial: one.model for serial, one in self.referee.workers.items()}
        actions = super().feed(event)
        for action in actions:
            self._keep(action, workers)
        for action in actions:
            if isinstance(action, events.CancelLoad):
                self._then(events.Unloaded(self.at, action.serial))
        return actions

    def _keep(self, action: Action, workers: Mapping[int, str]) -> None:
        match action:
            case events.Grant(ticket):
                self.fates[ticket] = "granted"
            case events.Refuse(ticket, _, error):
                self.fates[ticket] = repr(error)
            case events.StartLoad(model):
                self.asked[f"load {model}"] += 1
            case events.CancelLoad(serial):
                self.asked[f"cancel load {workers[serial]}"] += 1
            case events.Unload(serial) | events.Cut(serial):
                self._stopping[serial] = workers[serial]
                hangs = isinstance(action, events.Cut) and action.hangs
                self.asked[f"{'kill' if hangs else 'stop'} {workers[serial]}"] += 1
                if isinstance(action, events.Cut):
                    self.asked[f"cut {workers[serial]}"] += 1

    def growth(self, model: str) -> int:
        return BANKS.get(model, 0)

    def unloaded(self, serial: int) -> None:
        model = self._stopping[serial]
        together = [other for other, name in self._stopping.items() if name == model]
        for other in together:
            del self._stopping[other]
        first, *others = (events.Unloaded(self.at, other) for other in together if other in self.referee.workers)
        self._then(first)
        for other in others:
            self._then(other)
        self.note(first)

    def progressed(self, serial: int, since: float, awaited: float | None = None) -> None:
        self._heard(events.Progressed(self.at, serial, since, awaited))

    def downloaded(self, job: int, since: float) -> None:
        self._heard(events.LocateProgressed(self.at, job, since))

    def _heard(self, event: Event) -> None:
        """That something got further is heard where somebody looks."""
        self._then(event)
        self._then(events.Tick(self.at))
        self.note(event)


class Loop(asyncio.SelectorEventLoop):
    """Its time stands still until it is put forward."""

    at = 1000.0

    def time(self) -> float:
        return self.at


class Workers(FakeWorkers):
    """There may be an old and a new worker of one model: these are known by their serials."""

    def __init__(self) -> None:
        super().__init__()
        self.holdings: dict[int, Holding] = {}
        self.by_serial: dict[int, FakeWorker] = {}
        for model in SIZES:
            self.hold(f"load {model}")
            self.hold(f"stop {model}")
            self.hold(f"token {model}")

    async def load(self, source: ModelSource, owner: Owner) -> FakeWorker:
        assert isinstance(owner, Holding)
        self.holdings[owner.serial] = owner
        worker = self.by_serial[owner.serial] = await super().load(source, owner)
        worker.progressed = 0.0  # of another clock
        return worker

    def asked(self) -> Counter[str]:
        """How often what was asked of workers."""
        kinds = ("load", "cancel load", "stop", "kill", "cut")
        return Counter(what for what in self.history if what.rpartition(" ")[0] in kinds)

    def let_go(self) -> None:
        for gate in self._gates.values():
            gate.set()

    def let_through(self, what: str) -> None:
        """Those who wait now."""
        self.gate(what).set()
        self.gate(what).clear()


def rostered(policy: Policy, terms: Mapping[str, Terms]) -> Roster:
    """A roster that comes to the same."""
    residency = policy.min_residency
    scheduling = {
        "max_wait": policy.max_wait,
        "min_residency": f"{residency.factor}x" if isinstance(residency, Multiple) else residency,
        "queue_timeout": policy.queue_timeout,
        "max_queued": policy.max_queued,
        "load_timeout": policy.load_timeout,
        "drain_timeout": policy.drain_timeout,
        "stall_timeout": policy.stall_timeout,
    }
    written = {"scheduling": scheduling, "models": {model: _entry(model, one) for model, one in terms.items()}}
    return Roster.model_validate(written, context={"base": Path("/fake")})


def _entry(model: str, terms: Terms) -> dict[str, object]:
    assert isinstance(terms.sizing, tuple)
    return {
        "source": f"./{model}-{terms.version}",
        "ttl": "never" if math.isinf(terms.ttl) else terms.ttl,
        "pin": terms.pin,
        "priority": terms.priority,
        "max_queued": terms.max_queued,
        "max_concurrency": terms.max_concurrency,
        "max_context": terms.sizing[0],
    }


async def settled() -> None:
    """Let everything that can run now run."""
    for _ in range(12):
        await asyncio.sleep(0)


class Replay:
    """One Registry, to which one thing after the other happens."""

    def __init__(self, policy: Policy, loop: Loop) -> None:
        self.loop = loop
        self.workers = Workers()
        self.sources = FakeSources(banks=BANKS)
        roster = rostered(policy, ENTRIES)
        self.registry = Registry(roster, self.workers, self.sources, policy.budget, clock=loop.time)
        self.fates: dict[int, str] = {}
        self.requests: dict[int, asyncio.Task[None]] = {}
        self.done: dict[int, asyncio.Event] = {}

    async def play(self, past: list[tuple[Event, Snapshot]]) -> None:
        async with self.registry:
            try:
                for number, (event, after) in enumerate(past):
                    await self.step(event, after)
                    now = Snapshot.of(self.registry._state)
                    assert now == after, f"{number}: {event} led to\n{now}, not to\n{after}"
                assert all(one.done() for one in self.requests.values()), "somebody waits still"
            finally:
                self.workers.let_go()
        assert not self.workers.wrongs, self.workers.wrongs

    async def step(self, event: Event, after: Snapshot) -> None:
        await self.wait(event.at)
        searched = {model for _, model in after.searches}
        for model in searched:
            self.sources.gates.setdefault(model, asyncio.Event())
        self.happen(event)
        await settled()
        while self.registry._state.wake <= self.loop.at:
            self.registry.tick()
            await settled()
        self.registry.validate()
        for model in set(self.sources.gates) - searched:
            del self.sources.gates[model]

    async def wait(self, until: float) -> None:
        """The timer rings where it is due: a Registry that hears of it much later takes itself to have stood still."""
        while until - self.loop.at > LATE:
            self.loop.at += LATE
            for _ in range(3):
                await asyncio.sleep(0)
        self.loop.at = until
        await settled()

    def searches(self) -> tuple[tuple[int, str], ...]:
        return Snapshot.of(self.registry._state).searches

    async def request(self, event: events.Acquire) -> None:
        ticket, done = event.ticket, self.done[event.ticket]
        try:
            async with self.registry.lease(
                Ref(event.model),
                event.keep_alive,
                exempt=event.exempt,
                client=event.client,
                client_limit=event.client_limit,
            ) as lease:
                self.fates[ticket] = "granted"
                stream = lease.submit(HELLO)[0]
                await done.wait()
                stream.cancel()
        except RosterError as error:
            self.fates[ticket] = repr(error)

    def happen(self, event: Event) -> None:  # noqa: C901 - a line or two for each kind of event
        registry, workers = self.registry, self.workers
        match event:
            case events.Acquire(_, ticket):
                self.done[ticket] = asyncio.Event()
                self.requests[ticket] = self.loop.create_task(self.request(event))
            case events.Leave(_, ticket):
                if self.fates.get(ticket) == "granted":
                    self.done[ticket].set()
                else:
                    self.requests[ticket].cancel()
            case events.Located() | events.LocateFailed():
                self.found(event)
            case events.LocateProgressed(at, job):
                self.sources.downloads[dict(self.searches())[job]] = (round(at * 1000), 10**9)
                registry.tick()
            case events.Loaded(_, serial, measured):
                model = workers.holdings[serial].model
                workers.sizes[model] = measured
                workers.let_through(f"load {model}")
            case events.LoadFailed(_, serial, error):
                model = workers.holdings[serial].model
                workers.failures[model] = [error]
                workers.let_through(f"load {model}")
            case events.Unloaded(_, serial):
                workers.let_through(f"stop {workers.holdings[serial].model}")
            case events.Progressed(at, serial, _, awaited):
                if serial in workers.by_serial:
                    workers.by_serial[serial].progressed = at
                    workers.by_serial[serial].awaited = awaited
                else:
                    workers.holdings[serial].on_progress(1, 2)
                registry.tick()
            case events.Reported(_, serial, measured, growth, spare):
                worker = workers.by_serial[serial]
                worker.report(measured, worker.limits.bank - growth, spare)
            case events.Died(_, serial):
                workers.by_serial[serial].die()
            case events.Pin(_, model, pinned):
                registry.pin(model, pinned)
            case events.Withdraw(_, model, force):
                registry.unload(model, force=force)
            case events.Configure(_, policy, terms):
                registry.reconfigure(rostered(policy, terms), policy.budget)
            case events.Tick():
                pass  # the loop's timer has it happen

    def found(self, event: events.Located | events.LocateFailed) -> None:
        model = dict(self.searches())[event.job]
        if isinstance(event, events.Located):
            self.sources.sizes[model] = event.estimate
        else:
            self.sources.failures[model] = [event.error]
        self.sources.gates[model].set()


def replay(world: RecordedWorld, policy: Policy) -> Replay:
    """Have all of a World's past happen to a Registry, which began with `policy`."""
    with asyncio.Runner(loop_factory=Loop) as runner:
        loop: Any = runner.get_loop()
        played = Replay(policy, loop)
        runner.run(played.play(world.past))
        return played
