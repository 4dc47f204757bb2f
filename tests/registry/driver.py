"""A state machine on a leash: every event is followed by `validate`, and the history reads like a transcript."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mlx_roster.errors import LoadFailed as LoadFailedError
from mlx_roster.errors import RosterError
from mlx_roster.registry import events
from mlx_roster.registry.events import Action, Event
from mlx_roster.registry.policy import Policy, Terms
from mlx_roster.registry.state import Residency


class Driver:
    """Feeds a Residency and keeps what it asked for, in words: "load atlas", "grant 1", "unload atlas", "refuse 2".

    Each event comes a second after the one before. Models are in the roster as soon as they are asked for. Their files
    are found at once, unless `elsewhere` has their names: then the words have "locate atlas", and `located` answers.
    """

    def __init__(self, budget: int, **policy: Any) -> None:
        self.policy = Policy(budget, **policy)
        self.terms: dict[str, Terms] = {}
        self.state = Residency(self.policy, self.terms)
        self.elsewhere: set[str] = set()
        self.sizes: dict[str, int] = {}
        self.actions: list[Action] = []
        self.errors: dict[int, RosterError] = {}
        self.why: dict[int, str] = {}
        self.shares: dict[str, int] = {}
        self.serials: dict[str, int] = {}
        self.jobs: dict[str, int] = {}
        self._names: dict[int, str] = {}
        self.at = 0.0
        self._tickets = 0

    def __repr__(self) -> str:
        return repr(self.state)

    def set(self, model: str, **terms: Any) -> Driver:
        """A model's entry in the roster."""
        self.terms[model] = replace(self.terms.get(model, Terms()), **terms)
        return self

    def feed(self, event: Event) -> list[str]:
        """The actions that `event` led to, in words."""
        actions = self.state.handle(event)
        self.actions += actions
        said = [word for action in actions if (word := self._word(action))]
        self.state.validate()
        for model, job in list(self.jobs.items()):
            if model not in self.elsewhere:
                del self.jobs[model]
                said += self.feed(events.Located(self.at, job, self.sizes.get(model, 1)))
        return said

    def tick(self) -> float:
        self.at += 1.0
        return self.at

    def elapse(self, seconds: float) -> list[str]:
        """Let time pass, with a Tick whenever one is due. What comes of it, in words."""
        said, end = [], self.at + seconds
        while (due := max(self.state.wake, self.at)) <= end:
            self.at = due
            said += self.feed(events.Tick(due))
            assert self.state.wake > due, f"a Tick does not help: {self.state!r}"
        self.at = end
        return said

    def ask(self, model: str, size: int = 1, **extra: Any) -> tuple[int, list[str]]:
        """A request for a model: its ticket, and what came of it."""
        self._tickets += 1
        self.terms.setdefault(model, Terms())
        self.sizes.setdefault(model, size)
        return self._tickets, self.feed(events.Acquire(self.tick(), self._tickets, model, **extra))

    def ask_unlisted(self, model: str) -> tuple[int, list[str]]:
        """A request that was resolved when the roster still had the model."""
        self._tickets += 1
        return self._tickets, self.feed(events.Acquire(self.tick(), self._tickets, model))

    def leave(self, ticket: int) -> list[str]:
        return self.feed(events.Leave(self.tick(), ticket))

    def located(self, model: str, size: int = 1) -> list[str]:
        return self.feed(events.Located(self.tick(), self.jobs.pop(model), size))

    def not_located(self, model: str) -> list[str]:
        error = LoadFailedError(f"{model} is not there")
        return self.feed(events.LocateFailed(self.tick(), self.jobs.pop(model), error))

    def loaded(self, model: str, measured: int = 1, growth: int = 0) -> list[str]:
        return self.feed(events.Loaded(self.tick(), self.serials[model], measured, growth))

    def failed(self, model: str, *, out_of_memory: bool = False) -> list[str]:
        error = LoadFailedError(f"{model} is broken")
        return self.feed(events.LoadFailed(self.tick(), self.serials[model], error, out_of_memory))

    def reported(self, model: str, measured: int, growth: int = 0, spare: int = 0) -> list[str]:
        return self.feed(events.Reported(self.tick(), self.serials[model], measured, growth, spare))

    def progressed(self, model: str) -> list[str]:
        return self.feed(events.Progressed(self.tick(), self.serials[model], self.at))

    def died(self, model: str) -> list[str]:
        return self.feed(events.Died(self.tick(), self.serials[model]))

    def unloaded(self, model: str) -> list[str]:
        return self.feed(events.Unloaded(self.tick(), self.serials[model]))

    def pin(self, model: str, pinned: bool = True) -> list[str]:
        return self.feed(events.Pin(self.tick(), model, pinned))

    def withdraw(self, model: str, *, force: bool = False) -> list[str]:
        return self.feed(events.Withdraw(self.tick(), model, force))

    def configure(self, *, remove: tuple[str, ...] = (), budget: int | None = None, **changes: Any) -> list[str]:
        """A reload: some models are gone, others (by name) have other terms."""
        self.terms = {name: terms for name, terms in self.terms.items() if name not in remove}
        for name, terms in changes.items():
            self.terms[name] = replace(self.terms.get(name, Terms()), **terms)
        self.policy = replace(self.policy, budget=budget or self.policy.budget)
        return self.feed(events.Configure(self.tick(), self.policy, self.terms))

    def ready(self, model: str, size: int = 1, **extra: Any) -> int:
        """Ask for a model and load it: the ticket of a lease on it."""
        ticket, _ = self.ask(model, size, **extra)
        self.loaded(model, size)
        return ticket

    def idle(self, model: str, size: int = 1) -> None:
        """A model that is loaded and not in use."""
        self.leave(self.ready(model, size))

    def story(self, model: str) -> list[str]:
        return [what for _, what in self.state.board.records[model].story]

    def _word(self, action: Action) -> str:  # noqa: C901 - one line for each kind of action
        match action:
            case events.Grant(ticket, _):
                return f"grant {ticket}"
            case events.Queue(ticket, _, why):
                self.why[ticket] = why
                return ""
            case events.Refuse(ticket, _, error):
                self.errors[ticket] = error
                return f"refuse {ticket}"
            case events.Locate(model, job):
                self.jobs[model] = job
                return f"locate {model}" if model in self.elsewhere else ""
            case events.CancelLocate(job):
                (model,) = (name for name, other in self.jobs.items() if other == job)
                del self.jobs[model]
                return f"cancel locate {model}"
            case events.StartLoad(model, serial, _):
                self.serials[model] = serial
                self._names[serial] = model
                return f"load {model}"
            case events.CancelLoad(serial, _):
                return f"cancel {self._names[serial]}"
            case events.Drain(serial, _):
                return f"drain {self._names[serial]}"
            case events.Unload(serial, _):
                return f"unload {self._names[serial]}"
            case events.Cut(serial, _):
                return f"cut {self._names[serial]}"
            case events.Share(serial, size):
                self.shares[self._names[serial]] = size
                return ""
