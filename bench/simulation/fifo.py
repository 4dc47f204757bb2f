"""Plain FIFO with draining, as mlx_lm.server has it: one model at a time, one queue, nobody overtakes.

A request for another model waits until all that is running has ended, and whatever comes after it waits behind it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from functools import partial
from itertools import takewhile

from bench.simulation.world import Clock, Lanes, Outcome, Request, Scenario, Span


class Fifo:
    """One slot. A request whose turn has not come after `patience` seconds gives up."""

    def __init__(self, scenario: Scenario, requests: Sequence[Request], patience: float) -> None:
        self._scenario = scenario
        self.clock = Clock()
        self.outcome = Outcome(list(requests))
        self._queue: deque[Request] = deque()
        self._lanes = Lanes(self.clock, scenario.service, self._finished)
        self._model: str | None = None
        self._loading = False
        self._entered = 0.0
        for request in requests:
            self.clock.at(request.at, partial(self._arrive, request))
            self.clock.at(request.at + patience, partial(self._give_up, request))

    def run(self) -> Outcome:
        self.clock.run(lambda: math.inf, lambda: None)
        return self.outcome

    def _arrive(self, request: Request) -> None:
        self._queue.append(request)
        self._next()

    def _give_up(self, request: Request) -> None:
        if not request.served and not self._has_its_turn(request):
            request.gave_up = self.clock.now
            self._queue.remove(request)
            self._next()

    def _has_its_turn(self, request: Request) -> bool:
        """Whether its model is there or being loaded, and nobody ahead of it wants another."""
        ahead = takewhile(lambda one: one is not request, self._queue)
        return request.model == self._model and all(one.model == self._model for one in ahead)

    def _finished(self, _request: Request) -> None:
        self._next()

    def _next(self) -> None:
        while self._queue and not self._loading:
            model = self._queue[0].model
            if model == self._model and self._lanes.free:
                self._lanes.add(self._queue.popleft())
            elif model != self._model and self._lanes.idle:
                self._swap(model)
            else:
                return

    def _swap(self, model: str) -> None:
        now = self.clock.now
        if self._model is not None:
            self.outcome.spans.append(Span(self._model, "ready", self._entered, now))
        begins = now if self._model is None else now + self._scenario.unload
        ends = begins + self._scenario.load
        self.outcome.spans.append(Span(model, "loading", begins, ends))
        self.outcome.loads += 1
        self._model, self._entered, self._loading = model, ends, True
        self.clock.at(ends, self._loaded)

    def _loaded(self) -> None:
        self._loading = False
        self._next()
