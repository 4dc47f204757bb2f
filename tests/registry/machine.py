"""The World as hypothesis plays with it: it draws what happens next, and makes it small where something is wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mlx_roster.registry.policy import Policy
from tests.registry.books import Phase
from tests.registry.world import BUDGETS, CHANGES, CLIENTS, PAUSES, POLICIES, SILENCES, SIZES, STUCK, World

T = TypeVar("T")

MODELS = st.sampled_from(list(SIZES))
#: The time since the event before, and whether the event loop had the time for Ticks in it.
GAPS = st.sampled_from([*((seconds, True) for seconds in PAUSES), (0.0, False), (8.0, False), (90.0, False)])
#: One of those that are there, however many they are.
PICKS = st.integers(0, 31)
WHOSE = st.sampled_from([None, *CLIENTS])
KEPT = st.sampled_from([None, None, None, 0.0, 5.0])
OFFSETS = st.integers(-2, 3)
FEW = st.integers(0, 3)
ATS = st.sampled_from([None, *STUCK])
RARELY = st.sampled_from([False, False, False, True])


def picked(pick: int, those: Sequence[T]) -> T:
    return those[pick % len(those)]


def when(*phases: Phase) -> Callable[[T], T]:
    """Only if there is a worker in one of these phases."""
    return precondition(lambda machine: bool(machine.world.serials(*phases)))


searching = precondition(lambda machine: bool(machine.world.referee.searches))


class Machine(RuleBasedStateMachine):
    #: How many rules have been played, by all of these together.
    steps: ClassVar[list[int]] = [0]

    def __init__(self) -> None:
        super().__init__()
        self.world = World(POLICIES[0])

    def teardown(self) -> None:
        self.world.wind_down()

    @initialize(policy=st.sampled_from(POLICIES))
    def begin(self, policy: Policy) -> None:
        self.world = World(policy)

    @invariant()
    def counted(self) -> None:
        self.steps[0] += 1

    def after(self, gap: tuple[float, bool]) -> World:
        seconds, punctual = gap
        if punctual:
            self.world.punctually(seconds)
        else:
            self.world.at += seconds
        return self.world

    def one_of(self, pick: int, *phases: Phase) -> int | None:
        """A worker; None where time alone has brought the last of them on its way."""
        found = self.world.serials(*phases)
        return picked(pick, found) if found else None

    # Clients, and files

    @rule(gap=GAPS, model=MODELS, keep_alive=KEPT, exempt=RARELY, client=WHOSE)
    def ask(
        self, gap: tuple[float, bool], model: str, keep_alive: float | None, exempt: bool, client: str | None
    ) -> None:
        self.after(gap).ask(model, keep_alive, exempt=exempt, client=client)
        self.found()

    @rule(gap=GAPS, model=MODELS, count=st.integers(2, 5), client=WHOSE)
    def ask_together(self, gap: tuple[float, bool], model: str, count: int, client: str | None) -> None:
        world = self.after(gap)
        for _ in range(count):
            world.ask(model, client=client)
        self.found()

    @rule(gap=GAPS, model=MODELS, users=st.integers(0, 5), growth=FEW, client=WHOSE)
    def all_goes_well(self, gap: tuple[float, bool], model: str, users: int, growth: int, client: str | None) -> None:
        """What is open ends as it should, and so many more use `model` from now on, or have done so."""
        world = self.after(gap)
        tickets = [world.ask(model, client=client if number else None) for number in range(max(1, users))]
        self.found()
        for _ in range(2):
            for serial in world.serials(Phase.STOPPING, Phase.CANCELLED):
                world.unloaded(serial)
            for serial in world.serials(Phase.LOADING):
                world.loaded(serial, max(1, world.worker(serial).size - growth), growth)
        if not users:
            world.leave(tickets[0])

    @rule(gap=GAPS, model=MODELS)
    def ask_for_what_is_far(self, gap: tuple[float, bool], model: str) -> None:
        self.after(gap).ask(model)

    def found(self) -> None:
        """Files that are here are found before anything else happens."""
        for job, search in list(self.world.referee.searches.items()):
            self.world.located(job, SIZES[search.model])

    @precondition(lambda machine: bool(machine.world.referee.claims))
    @rule(gap=GAPS, pick=PICKS)
    def leave(self, gap: tuple[float, bool], pick: int) -> None:
        world = self.after(gap)
        world.leave(picked(pick, list(world.referee.claims)))

    @precondition(lambda machine: bool(machine.world.referee.claims))
    @rule(gap=GAPS, pick=PICKS)
    def all_leave(self, gap: tuple[float, bool], pick: int) -> None:
        """Whoever uses one of the models."""
        world = self.after(gap)
        model = picked(pick, list(world.referee.claims.values())).model
        for claim in list(world.referee.claims.values()):
            if claim.model == model and not claim.waits:
                world.leave(claim.ticket)

    @searching
    @rule(gap=GAPS, pick=PICKS, offset=OFFSETS, good=st.booleans())
    def looked_for(self, gap: tuple[float, bool], pick: int, offset: int, good: bool) -> None:
        searches = list(self.after(gap).referee.searches.items())
        if searches:
            job, search = picked(pick, searches)
            self.world.located(job, max(1, SIZES[search.model] + min(offset, 1))) if good else self.world.not_located(
                job
            )

    @searching
    @rule(gap=GAPS, pick=PICKS, ago=FEW)
    def downloaded(self, gap: tuple[float, bool], pick: int, ago: int) -> None:
        searches = list(self.after(gap).referee.searches)
        if searches:
            self.world.downloaded(picked(pick, searches), self.world.at - ago)

    @precondition(lambda machine: machine.world.tickets > 3)
    @rule(gap=GAPS, number=st.integers(0, 15), good=st.booleans())
    def answered_too_late(self, gap: tuple[float, bool], number: int, good: bool) -> None:
        """Somebody is over, and says so again; or never was."""
        world = self.after(gap)
        if number not in world.referee.searches:
            world.located(number, 1) if good else world.not_located(number)
        if number not in world.referee.claims:
            world.leave(number)
        if number not in world.referee.workers:
            world.unloaded(number) if good else world.died(number)

    # Workers

    @when(Phase.LOADING, Phase.CANCELLED)
    @rule(gap=GAPS, pick=PICKS, offset=OFFSETS, growth=FEW)
    def loaded(self, gap: tuple[float, bool], pick: int, offset: int, growth: int) -> None:
        """One that was cancelled has finished in the same moment, and is still to end."""
        world, serial = self.after(gap), self.one_of(pick, Phase.LOADING, Phase.CANCELLED)
        if serial is not None:
            world.loaded(serial, max(1, SIZES[world.worker(serial).model] + offset), growth)

    @when(Phase.LOADING)
    @rule(gap=GAPS, pick=PICKS)
    def loaded_as_expected(self, gap: tuple[float, bool], pick: int) -> None:
        world, serial = self.after(gap), self.one_of(pick, Phase.LOADING)
        if serial is not None:
            world.loaded(serial, world.worker(serial).size)

    @when(Phase.LOADING, Phase.CANCELLED)
    @rule(gap=GAPS, pick=PICKS, out_of_memory=st.booleans())
    def load_failed(self, gap: tuple[float, bool], pick: int, out_of_memory: bool) -> None:
        world, serial = self.after(gap), self.one_of(pick, Phase.LOADING, Phase.CANCELLED)
        if serial is not None:
            world.load_failed(serial, out_of_memory=out_of_memory)

    @when(Phase.LOADING)
    @rule(gap=GAPS, pick=PICKS, times=st.integers(1, 3))
    def out_of_memory(self, gap: tuple[float, bool], pick: int, times: int) -> None:
        """Again and again, as long as it is tried."""
        world, serial = self.after(gap), self.one_of(pick, Phase.LOADING)
        for _ in range(times):
            if serial in world.serials(Phase.LOADING):
                world.load_failed(serial, out_of_memory=True)
            for leaving in world.serials(Phase.STOPPING):
                world.unloaded(leaving)

    @when(*Phase)
    @rule(gap=GAPS, pick=PICKS, ago=FEW)
    def progressed(self, gap: tuple[float, bool], pick: int, ago: int) -> None:
        world, serial = self.after(gap), self.one_of(pick, *Phase)
        if serial is not None:
            world.progressed(serial, world.at - ago)

    @when(Phase.READY, Phase.DRAINING, Phase.STOPPING)
    @rule(gap=GAPS, pick=PICKS, stuck=ATS)
    def at_one_thing(self, gap: tuple[float, bool], pick: int, stuck: float | None) -> None:
        """It hangs, or will unless it is heard of again."""
        world, serial = self.after(gap), self.one_of(pick, Phase.READY, Phase.DRAINING, Phase.STOPPING)
        if serial is not None:
            world.progressed(serial, world.worker(serial).progressed, None if stuck is None else world.at - stuck)

    @when(Phase.READY)
    @rule(gap=GAPS, pick=PICKS, times=st.integers(1, 3))
    def hangs(self, gap: tuple[float, bool], pick: int, times: int) -> None:
        """Again and again, as long as it is loaded for those who ask."""
        world, serial = self.after(gap), self.one_of(pick, Phase.READY)
        for _ in range(times):
            if serial is None:
                return
            model = world.worker(serial).model
            world.progressed(serial, world.at, world.at - 61)
            world.tick()
            for leaving in world.serials(Phase.STOPPING):
                world.unloaded(leaving)
            world.ask(model)
            self.found()
            for loading in world.serials(Phase.LOADING):
                world.loaded(loading, world.worker(loading).size)
            current = world.referee.current(model)
            serial = current.serial if current is not None and current.phase is Phase.READY else None

    @when(Phase.READY, Phase.DRAINING, Phase.STOPPING)
    @rule(gap=GAPS, pick=PICKS, offset=OFFSETS, growth=FEW, spare=FEW)
    def reported(self, gap: tuple[float, bool], pick: int, offset: int, growth: int, spare: int) -> None:
        world, serial = self.after(gap), self.one_of(pick, Phase.READY, Phase.DRAINING, Phase.STOPPING)
        if serial is not None:
            world.reported(serial, max(1, SIZES[world.worker(serial).model] + offset), growth, spare)

    @when(Phase.READY, Phase.DRAINING, Phase.STOPPING)
    @rule(gap=GAPS, pick=PICKS)
    def died(self, gap: tuple[float, bool], pick: int) -> None:
        world, serial = self.after(gap), self.one_of(pick, Phase.READY, Phase.DRAINING, Phase.STOPPING)
        if serial is not None:
            world.died(serial)

    @when(Phase.STOPPING, Phase.CANCELLED)
    @rule(gap=GAPS, pick=PICKS)
    def unloaded(self, gap: tuple[float, bool], pick: int) -> None:
        world, serial = self.after(gap), self.one_of(pick, Phase.STOPPING, Phase.CANCELLED)
        if serial is not None:
            world.unloaded(serial)

    @when(Phase.STOPPING, Phase.CANCELLED)
    @rule(gap=GAPS)
    def all_unloaded(self, gap: tuple[float, bool]) -> None:
        world = self.after(gap)
        for serial in world.serials(Phase.STOPPING, Phase.CANCELLED):
            world.unloaded(serial)

    # The operator

    @rule(gap=GAPS, model=MODELS, pinned=st.booleans())
    def pin(self, gap: tuple[float, bool], model: str, pinned: bool) -> None:
        self.after(gap).pin(model, pinned)

    @when(*Phase)
    @rule(gap=GAPS, pick=PICKS, force=st.booleans())
    def withdraw(self, gap: tuple[float, bool], pick: int, force: bool) -> None:
        world, serial = self.after(gap), self.one_of(pick, *Phase)
        if serial is not None:
            world.withdraw(world.worker(serial).model, force=force)

    @rule(gap=GAPS, model=MODELS, change=st.sampled_from([None, {}, *CHANGES]))
    def change(self, gap: tuple[float, bool], model: str, change: dict[str, object] | None) -> None:
        self.after(gap).change(model, change)
        self.found()

    @rule(gap=GAPS, budget=st.sampled_from(BUDGETS))
    def budget(self, gap: tuple[float, bool], budget: int) -> None:
        self.after(gap).budget(budget)

    # Time

    @rule(seconds=st.sampled_from(SILENCES))
    def nothing_happens(self, seconds: float) -> None:
        self.world.punctually(seconds)

    @rule()
    def tick(self) -> None:
        self.world.tick()
