"""This project's policy: the real state machine of `mlx_roster.registry`, told what happens to a made-up machine."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from functools import partial

from bench.simulation.world import LANES, Clock, Lanes, Outcome, Request, Scenario, Span
from mlx_roster.registry import events
from mlx_roster.registry.events import Action, Event
from mlx_roster.registry.policy import Policy, Terms
from mlx_roster.registry.state import Residency

#: Bytes of each model, of a budget that has room for one.
SIZE = 10


class Rostered:
    """One slot under a Residency. With `proven`, its invariants are looked at after every event."""

    def __init__(self, scenario: Scenario, requests: Sequence[Request], policy: Policy, *, proven: bool) -> None:
        self._scenario, self._proven = scenario, proven
        self.clock = Clock()
        self.outcome = Outcome(list(requests))
        self.state = Residency(policy, {model: Terms(max_concurrency=LANES) for model in scenario.rates})
        self._requests = {request.ticket: request for request in requests}
        self._models: dict[int, str] = {}
        self._lanes: dict[int, Lanes] = {}
        self._since: dict[int, tuple[str, float]] = {}
        for request in requests:
            self.clock.at(request.at, partial(self._arrive, request))

    def run(self) -> Outcome:
        self.clock.run(lambda: self.state.wake, lambda: self._feed(events.Tick(self.clock.now)))
        for request in self.outcome.requests:
            assert request.served or request.gave_up < math.inf or request.refused, f"{request} is still waiting"
        return self.outcome

    def _arrive(self, request: Request) -> None:
        self._feed(events.Acquire(self.clock.now, request.ticket, request.model))

    def _finished(self, request: Request) -> None:
        self._feed(events.Leave(self.clock.now, request.ticket))

    def _feed(self, event: Event) -> None:
        inbox = deque([event])
        while inbox:
            actions = self.state.handle(inbox.popleft())
            if self._proven:
                self.state.validate()
            for action in actions:
                if isinstance(action, events.Locate):
                    inbox.append(events.Located(self.clock.now, action.job, SIZE))
                else:
                    self._perform(action)

    def _perform(self, action: Action) -> None:
        match action:
            case events.Grant(ticket, serial):
                self._lanes[serial].add(self._requests[ticket])
            case events.Refuse(ticket):
                self._refuse(self._requests[ticket])
            case events.StartLoad(model, serial):
                self._models[serial] = model
                self._lanes[serial] = Lanes(self.clock, self._scenario.service, self._finished)
                self.outcome.loads += 1
                self._enter(serial, "loading")
                self.clock.after(self._scenario.load, partial(self._loaded, serial))
            case events.Drain(serial):
                self._enter(serial, "draining")
            case events.Unload(serial) | events.CancelLoad(serial) | events.Cut(serial):
                self._enter(serial, None)
                self.clock.after(self._scenario.unload, partial(self._unloaded, serial))

    def _refuse(self, request: Request) -> None:
        if self.clock.now > request.at:
            request.gave_up = self.clock.now
        else:
            request.refused = True

    def _loaded(self, serial: int) -> None:
        if serial in self._since:
            self._enter(serial, "ready")
            self._feed(events.Loaded(self.clock.now, serial, SIZE))

    def _unloaded(self, serial: int) -> None:
        self._feed(events.Unloaded(self.clock.now, serial))

    def _enter(self, serial: int, state: str | None) -> None:
        before = self._since.pop(serial, None)
        if before is not None:
            self.outcome.spans.append(Span(self._models[serial], *before, self.clock.now))
        if state is not None:
            self._since[serial] = (state, self.clock.now)
