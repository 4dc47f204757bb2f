"""Plays with a World at random: the same game for the same seed."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TypeVar

from tests.registry.books import Phase
from tests.registry.world import BUDGETS, CHANGES, CLIENTS, PAUSES, SILENCES, SIZES, STUCK, World

T = TypeVar("T")


class Gambler:
    """Does only what a Registry's surroundings may do, and nothing that comes too late or twice."""

    def __init__(self, world: World, seed: int) -> None:
        self.random = random.Random(seed)
        self.world = world

    def play(self, moves: int) -> None:
        choices: dict[Callable[[], None], int] = {
            self.ask: 14,
            self.leave: 6,
            self.find: 20,
            self.load: 12,
            self.report: 4,
            self.progress: 2,
            self.hang: 1,
            self.die: 1,
            self.stop: 10,
            self.operate: 2,
            self.change: 2,
            self.rest: 2,
        }
        for _ in range(moves):
            self.world.punctually(self.random.choice(PAUSES))
            self.random.choices(list(choices), list(choices.values()))[0]()

    def one(self, those: list[T]) -> list[T]:
        """One of them, if there is one."""
        return [self.random.choice(those)] if those else []

    def chance(self, part: float) -> bool:
        return self.random.random() < part

    def ask(self) -> None:
        model = self.random.choice([*SIZES])
        self.world.ask(model, self.random.choice([None, None, 0.0, 5.0]), exempt=self.chance(0.1), client=self.whose())

    def whose(self) -> str | None:
        return self.random.choice([None, None, *CLIENTS])

    def leave(self) -> None:
        for claim in self.one([one for one in self.world.referee.claims.values() if not one.refused]):
            self.world.leave(claim.ticket)

    def find(self) -> None:
        for job in self.one(list(self.world.referee.searches)):
            if self.chance(0.1):
                self.world.not_located(job)
            elif self.chance(0.1):
                self.world.downloaded(job, self.world.at)
            else:
                self.world.located(job, SIZES[self.world.referee.searches[job].model])

    def load(self) -> None:
        for serial in self.one(self.world.serials(Phase.LOADING)):
            model = self.world.worker(serial).model
            if self.chance(0.2):
                self.world.load_failed(serial, out_of_memory=self.chance(0.5))
            else:
                measured = max(1, SIZES[model] + self.random.randint(-2, 1))
                self.world.loaded(serial, measured, self.world.growth(model))

    def report(self) -> None:
        for serial in self.one(self.world.serials(Phase.READY, Phase.DRAINING)):
            model, drawn = self.world.worker(serial).model, self.random.randint
            growth = drawn(0, self.world.growth(model))
            self.world.reported(serial, max(1, SIZES[model] + drawn(-2, 3)), growth, drawn(0, 2))

    def progress(self) -> None:
        for serial in self.one(self.world.serials(Phase.LOADING, Phase.READY, Phase.DRAINING)):
            self.world.progressed(serial, self.world.at)

    def hang(self) -> None:
        for serial in self.one(self.world.serials(Phase.READY, Phase.DRAINING)):
            self.world.progressed(serial, self.world.at, self.world.at - self.random.choice(STUCK))

    def die(self) -> None:
        for serial in self.one(self.world.serials(Phase.READY, Phase.DRAINING)):
            self.world.died(serial)

    def stop(self) -> None:
        for serial in self.one(self.world.serials(Phase.STOPPING)):
            self.world.unloaded(serial)

    def operate(self) -> None:
        for model in self.one(list(self.world.terms)):
            if self.chance(0.5):
                self.world.withdraw(model, force=self.chance(0.5))
            else:
                self.world.pin(model, self.chance(0.5))

    def change(self) -> None:
        if self.chance(0.3):
            self.world.budget(self.random.choice(BUDGETS))
        else:
            self.world.change(self.random.choice([*SIZES]), self.random.choice([None, {}, *CHANGES]))

    def rest(self) -> None:
        self.world.punctually(self.random.choice(SILENCES[: self.random.randint(1, len(SILENCES))]))
