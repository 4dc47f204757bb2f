"""What both policies are simulated in: a clock, the same clients, and a server's lanes."""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

#: Seconds that a worker takes to exit and give its memory back.
UNLOAD = 0.3

#: Requests that one model works on at a time.
LANES = 8

#: Seconds that a request takes once it has a lane.
SERVICE = 3.0


@dataclass(frozen=True, slots=True)
class Scenario:
    """Requests per second for each model, and how many seconds a load takes. The model asked for least is the last."""

    rates: Mapping[str, float]
    load: float
    service: float = SERVICE
    unload: float = UNLOAD


@dataclass(slots=True, eq=False)
class Request:
    """One client's. It begins when it has a lane; it gives up, or is refused at once, or neither."""

    ticket: int
    model: str
    at: float
    began: float = math.inf
    gave_up: float = math.inf
    refused: bool = False

    @property
    def served(self) -> bool:
        return self.began < math.inf

    @property
    def wait(self) -> float:
        """Seconds until it began or gave up."""
        return min(self.began, self.gave_up) - self.at


@dataclass(frozen=True, slots=True)
class Span:
    """What became of a slot: `model` was "loading", "ready" or "draining" for a while."""

    model: str
    state: str
    start: float
    end: float


@dataclass(slots=True)
class Outcome:
    """All that one run has to say."""

    requests: list[Request]
    loads: int = 0
    spans: list[Span] = field(default_factory=list)

    def of(self, model: str) -> list[Request]:
        return [request for request in self.requests if request.model == model]


class Clock:
    """Seconds, and what is to happen when."""

    def __init__(self) -> None:
        self.now = 0.0
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()

    def at(self, when: float, call: Callable[[], None]) -> None:
        heapq.heappush(self._due, (when, next(self._order), call))

    def after(self, seconds: float, call: Callable[[], None]) -> None:
        self.at(self.now + seconds, call)

    def run(self, wake: Callable[[], float], tick: Callable[[], None]) -> None:
        """Until nothing is left to do. `tick` is called whenever `wake` falls due before anything else."""
        while self._due or wake() < math.inf:
            due = max(self.now, wake())
            if not self._due or due < self._due[0][0]:
                self.now = due
                tick()
            else:
                self.now, _, call = heapq.heappop(self._due)
                call()


class Lanes:
    """The lanes of one worker. Those beyond them wait in the order they came."""

    def __init__(self, clock: Clock, service: float, finished: Callable[[Request], None]) -> None:
        self._clock = clock
        self._service = service
        self._finished = finished
        self._waiting: deque[Request] = deque()
        self._running = 0

    @property
    def free(self) -> bool:
        return self._running < LANES

    @property
    def idle(self) -> bool:
        return not self._running

    def add(self, request: Request) -> None:
        self._waiting.append(request)
        self._next()

    def _next(self) -> None:
        while self._waiting and self.free:
            request = self._waiting.popleft()
            request.began = self._clock.now
            self._running += 1
            self._clock.after(self._service, lambda done=request: self._end(done))  # type: ignore[misc]

    def _end(self, request: Request) -> None:
        self._running -= 1
        self._finished(request)
        self._next()


def poisson(rates: Mapping[str, float], seconds: float, seed: int) -> list[Request]:
    """Arrivals in their order; those of one model are the same whatever the others are."""
    found = [(at, model) for model, rate in rates.items() for at in _times(rate, seconds, f"{seed} {model}")]
    return [Request(ticket, model, at) for ticket, (at, model) in enumerate(sorted(found), 1)]


def _times(rate: float, seconds: float, seed: str) -> Iterable[float]:
    chance = random.Random(seed)
    at = chance.expovariate(rate)
    while at < seconds:
        yield at
        at += chance.expovariate(rate)
