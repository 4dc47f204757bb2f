"""Random arrivals, departures, load results and deaths: invariants hold throughout, and every ticket is resolved."""

from __future__ import annotations

import random

import pytest

from tests.registry.driver import Driver

BUDGET = 10
SIZES = {"a": 3, "b": 4, "c": 6, "d": 9, "e": 11}


class Life:
    """A Driver whose loads and unloads are answered at random, and whose tickets are followed to their end."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.driver = Driver(BUDGET)
        self.open: set[int] = set()  # tickets that wait or hold a lease
        self.leased: set[int] = set()
        self.loading: set[str] = set()
        self.ready: set[str] = set()
        self.leaving: list[str] = []  # told to unload, or whose load was cancelled

    def note(self, said: list[str]) -> None:
        for what, name in (line.split() for line in said):
            match what:
                case "grant":
                    assert int(name) in self.open
                    assert int(name) not in self.leased, f"granted twice: {name}"
                    self.leased.add(int(name))
                case "refuse":
                    self.open.remove(int(name))
                case "load":
                    assert name not in self.loading | self.ready
                    self.loading.add(name)
                case "cancel":
                    self.loading.remove(name)
                    self.leaving.append(name)
                case "unload":
                    self.ready.remove(name)
                    self.leaving.append(name)

    def ask(self) -> None:
        model = self.random.choice(sorted(SIZES))
        ticket, said = self.driver.ask(model, SIZES[model])
        self.open.add(ticket)
        self.note(said)

    def leave(self, tickets: set[int]) -> None:
        if tickets:
            ticket = self.random.choice(sorted(tickets))
            self.open.discard(ticket)
            self.leased.discard(ticket)
            self.note(self.driver.leave(ticket))

    def load(self) -> None:
        if self.loading:
            model = self.random.choice(sorted(self.loading))
            self.loading.remove(model)
            if self.random.random() < 0.3:
                self.note(self.driver.failed(model, out_of_memory=self.random.random() < 0.5))
            else:
                self.ready.add(model)
                measured = self.random.choice([1, SIZES[model], SIZES[model] + 1])
                self.note(self.driver.loaded(model, measured, self.random.randint(0, 3)))

    def unload(self) -> None:
        if self.leaving:
            self.note(self.driver.unloaded(self.leaving.pop(0)))

    def die(self) -> None:
        if self.ready:
            model = self.random.choice(sorted(self.ready))
            self.ready.remove(model)
            dead = self.driver.state.residents[self.driver.serials[model]].leases
            self.open -= dead
            self.leased -= dead
            self.note(self.driver.died(model))

    def report(self) -> None:
        if self.ready:
            model = self.random.choice(sorted(self.ready))
            measured, growth = self.random.randint(1, SIZES[model] + 3), self.random.randint(0, 3)
            self.note(self.driver.reported(model, measured, growth))


@pytest.mark.parametrize("block", range(10))
def test_random_event_fuzz_keeps_every_invariant(block: int) -> None:
    for seed in range(block * 30, block * 30 + 30):
        life = Life(seed)
        moves = [life.ask, life.ask, lambda: life.leave(life.open), life.load, life.unload, life.die, life.report]  # noqa: B023
        for _ in range(100):
            life.random.choice(moves)()
        # No more arrivals: whoever waits is served once the others have left.
        for _ in range(1000):
            if not life.open:
                break
            life.load()
            life.unload()
            life.leave(life.leased)
        assert not life.open, f"seed {seed}: tickets {life.open} were never answered: {life.driver.state!r}"
