"""A state machine on a leash: every event is followed by `validate`, and the history reads like a transcript."""

from __future__ import annotations

import itertools

from mlx_roster.errors import LoadFailed as LoadFailedError
from mlx_roster.errors import RosterError
from mlx_roster.registry.events import (
    Acquire,
    Action,
    CancelLoad,
    Died,
    Event,
    Grant,
    Leave,
    Loaded,
    LoadFailed,
    Refuse,
    Reported,
    StartLoad,
    Unload,
    Unloaded,
)
from mlx_roster.registry.state import Residency


class Driver:
    """Feeds a Residency and keeps what it asked for, in words: "load atlas", "grant 1", "unload atlas", "refuse 2"."""

    def __init__(self, budget: int) -> None:
        self.state = Residency(budget)
        self.actions: list[Action] = []
        self.errors: dict[int, RosterError] = {}
        self.serials: dict[str, int] = {}
        self._names: dict[int, str] = {}
        self._clock = itertools.count(1)
        self._tickets = itertools.count(1)

    def feed(self, event: Event) -> list[str]:
        """The actions that `event` led to, in words."""
        actions = self.state.handle(event)
        self.actions += actions
        said = [self._word(action) for action in actions]
        self.state.validate()
        return said

    def ask(self, model: str, size: int = 1) -> tuple[int, list[str]]:
        """A request for a model: its ticket, and what came of it."""
        ticket = next(self._tickets)
        return ticket, self.feed(Acquire(next(self._clock), ticket, model, size))

    def leave(self, ticket: int) -> list[str]:
        return self.feed(Leave(next(self._clock), ticket))

    def loaded(self, model: str, measured: int = 1, growth: int = 0) -> list[str]:
        return self.feed(Loaded(next(self._clock), self.serials[model], measured, growth))

    def failed(self, model: str, *, out_of_memory: bool = False) -> list[str]:
        error = LoadFailedError(f"{model} is broken")
        return self.feed(LoadFailed(next(self._clock), self.serials[model], error, out_of_memory))

    def reported(self, model: str, measured: int, growth: int = 0) -> list[str]:
        return self.feed(Reported(next(self._clock), self.serials[model], measured, growth))

    def died(self, model: str) -> list[str]:
        return self.feed(Died(next(self._clock), self.serials[model]))

    def unloaded(self, model: str) -> list[str]:
        return self.feed(Unloaded(next(self._clock), self.serials[model]))

    def ready(self, model: str, size: int = 1) -> int:
        """Ask for a model and load it: the ticket of a lease on it."""
        ticket, _ = self.ask(model, size)
        self.loaded(model, size)
        return ticket

    def idle(self, model: str, size: int = 1) -> None:
        """A model that is loaded and not in use."""
        self.leave(self.ready(model, size))

    def _word(self, action: Action) -> str:
        match action:
            case Grant(ticket, _):
                return f"grant {ticket}"
            case Refuse(ticket, error):
                self.errors[ticket] = error
                return f"refuse {ticket}"
            case StartLoad(model, serial, _):
                self.serials[model] = serial
                self._names[serial] = model
                return f"load {model}"
            case CancelLoad(serial):
                return f"cancel {self._names[serial]}"
            case Unload(serial):
                return f"unload {self._names[serial]}"
