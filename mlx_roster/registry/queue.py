"""Who waits, for what, and in which order models are looked at."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from mlx_roster.registry.record import Record


@dataclass(frozen=True, slots=True)
class Waiter:
    """A ticket in the queue."""

    ticket: int
    model: str
    since: float
    keep_alive: float | None = None
    exempt: bool = False
    client: str | None = None


@dataclass(slots=True)
class Search:
    """A model's files are being looked for, or downloaded. `progressed`: when that last got any further."""

    job: int
    progressed: float


@dataclass(slots=True, eq=False)
class Line:
    """All who wait for one model, oldest first. They are served together."""

    record: Record
    priority: int
    waiters: dict[int, Waiter] = field(default_factory=dict)
    search: Search | None = None
    #: When it began to wait for room, if that was after a search, or after a load that came to nothing.
    resumed: float = 0.0
    #: The one retry after running out of memory is used up.
    retried: bool = False
    #: The last serial there was when it was overdue and held up for the first time, if it was.
    barrier: int = 0

    @property
    def model(self) -> str:
        return self.record.model

    @property
    def since(self) -> float:
        """How long it has been waiting for room."""
        return max(self.resumed, next(iter(self.waiters.values())).since)

    @property
    def counted(self) -> int:
        """How many of them limits are for: all but the exempt."""
        return sum(not waiter.exempt for waiter in self.waiters.values())

    def expired(self, at: float, timeout: float) -> list[Waiter]:
        """Those who have waited too long for room."""
        return [one for one in self.waiters.values() if not one.exempt and self._deadline(one, timeout) <= at]

    def deadline(self, timeout: float) -> float:
        """When the next of them will have waited too long."""
        return next((self._deadline(one, timeout) for one in self.waiters.values() if not one.exempt), math.inf)

    def _deadline(self, waiter: Waiter, timeout: float) -> float:
        return max(self.resumed, waiter.since) + timeout


class Queue:
    """Tickets by model. A model has a Line as long as somebody waits for it."""

    def __init__(self) -> None:
        self.lines: dict[str, Line] = {}
        self._tickets: dict[int, Line] = {}
        #: How many of the tickets limits are for: all but the exempt. And of these, each client's.
        self.counted = 0
        self.clients: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._tickets)

    def __contains__(self, ticket: object) -> bool:
        return ticket in self._tickets

    def __iter__(self) -> Iterator[int]:
        return iter(self._tickets)

    def waiting(self, model: str) -> int:
        """How many tickets wait for `model`."""
        line = self.lines.get(model)
        return 0 if line is None else len(line.waiters)

    def put(self, waiter: Waiter, record: Record, priority: int) -> Line:
        line = self.lines.get(waiter.model)
        if line is None:
            line = self.lines[waiter.model] = Line(record, priority)
        line.waiters[waiter.ticket] = waiter
        self._tickets[waiter.ticket] = line
        if not waiter.exempt:
            self.counted += 1
            if waiter.client is not None:
                self.clients[waiter.client] += 1
        return line

    def take(self, ticket: int) -> tuple[Waiter, Line] | None:
        """Let one go. The Line that comes with it may be empty now, and is then no longer among `lines`."""
        line = self._tickets.pop(ticket, None)
        if line is None:
            return None
        waiter = line.waiters.pop(ticket)
        if not waiter.exempt:
            self.counted -= 1
            if waiter.client is not None:
                self._uncount(waiter.client)
        if not line.waiters:
            del self.lines[line.model]
        return waiter, line

    def _uncount(self, client: str) -> None:
        self.clients[client] -= 1
        if not self.clients[client]:
            del self.clients[client]

    def ordered(self, at: float, max_wait: float) -> list[tuple[Line, bool]]:
        """The Lines, each with whether it is overdue: these first, oldest first; then by priority, and by age."""
        # The same sum as in `deadlines`: a difference may come out otherwise.
        marked = [(line, line.since + max_wait <= at) for line in self.lines.values()]
        return sorted(marked, key=lambda pair: (not pair[1], 0 if pair[1] else -pair[0].priority, pair[0].since))
