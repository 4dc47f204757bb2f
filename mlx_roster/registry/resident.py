"""One model that has bytes in the budget: its state, and the moves there are. The decisions are in `state`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum

from mlx_roster.registry.record import Record


class State(Enum):
    LOADING = "loading"  # admitted: its bytes are reserved; `started` says whether a worker is at it
    READY = "ready"  # takes leases
    DRAINING = "draining"  # takes none, is never revived; those it has run to their end
    UNLOADING = "unloading"  # has none; its memory is still held
    GONE = "gone"  # a terminal state: the object is no longer in the table


_MOVES = {
    State.LOADING: {State.READY, State.UNLOADING, State.GONE},
    State.READY: {State.DRAINING, State.UNLOADING, State.GONE},
    State.DRAINING: {State.UNLOADING, State.GONE},
    State.UNLOADING: {State.GONE},
    State.GONE: set(),
}


class InvalidTransition(Exception):
    """A move that the table forbids: a bug. Carries the model's last events."""

    def __init__(self, resident: Resident, to: State) -> None:
        super().__init__(f"{resident} cannot become {to.name}; its story: {list(resident.record.story)}")


@dataclass(slots=True, eq=False)
class Resident:
    """A model that has bytes in the budget."""

    record: Record
    serial: int
    estimated: int
    version: object = None
    sizing: object = None  # what its estimate was made for
    pinned: bool = False
    state: State = State.LOADING
    started: float | None = None
    #: When its load, or what it runs, last got any further.
    progressed: float = 0.0
    #: Since when its worker has been at one thing, where it has anything to do.
    awaited: float | None = None
    awaits: frozenset[int] = frozenset()  # serials that must be gone before it is started
    cut: bool = False  # its worker has been told to stop, leases or not
    loaded: float = 0.0
    #: Until then it takes leases, whoever waits.
    fresh_until: float = 0.0
    measured: int | None = None
    settled: int | None = None  # its size when it was loaded
    growth: int = 0  # what it may still come to take
    spare: int = 0  # of `measured`, what it would give back at once
    share: int | None = None  # what it was last told it may take
    leases: set[int] = field(default_factory=set)
    idle_since: float = 0.0
    #: Seconds that it stays when idle, and whether a request asked for that.
    keep: float = math.inf
    asked: bool = False

    @property
    def model(self) -> str:
        return self.record.model

    @property
    def size(self) -> int:
        """Bytes that it needs: once there is a measurement, that and its growth, until then the estimate."""
        return self.estimated if self.measured is None else self.measured - self.spare + self.growth

    @property
    def entitled(self) -> int:
        """Bytes that it has at least, however much it uses just now: what it had when it was loaded."""
        return min(self.size, self.settled) if self.settled is not None else self.size

    @property
    def taken(self) -> int:
        """Bytes that nobody else can have right now."""
        if self.started is None:
            return 0
        return self.size if self.measured is None else max(self.size, self.measured)

    @property
    def stays(self) -> bool:
        """Whether the budget must have room for it from now on. The others are on their way out."""
        return self.state is State.LOADING or self.state is State.READY

    @property
    def idle(self) -> bool:
        """Ready, and nobody uses it."""
        return self.state is State.READY and not self.leases

    def move(self, to: State, at: float, why: str) -> None:
        """The only way a state changes. Raises InvalidTransition."""
        if to not in _MOVES[self.state]:
            raise InvalidTransition(self, to)
        self.state = to
        self.record.note(at, f"{to.value}: {why}")

    def __repr__(self) -> str:
        uses = f" {len(self.leases)} leases" if self.leases else ""
        pending = "" if self.started is not None or self.state is not State.LOADING else " (waits for room)"
        return f"{self.model} {self.state.name}{pending}{uses}"
