"""One model that has bytes in the budget: its state, and the moves there are. The decisions are in `state`."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum


class State(Enum):
    LOADING = "loading"  # admitted: its bytes are reserved; `started` says whether a worker is at it
    READY = "ready"  # takes leases
    UNLOADING = "unloading"  # takes none, is never revived; its memory is still held
    GONE = "gone"  # a terminal state: the object is no longer in the table


_MOVES = {
    State.LOADING: {State.READY, State.UNLOADING, State.GONE},
    State.READY: {State.UNLOADING, State.GONE},
    State.UNLOADING: {State.GONE},
    State.GONE: set(),
}


class InvalidTransition(Exception):
    """A move that the table forbids: a bug. Carries the Resident's last events."""

    def __init__(self, resident: Resident, to: State) -> None:
        super().__init__(f"{resident} cannot become {to.name}; its story: {list(resident.story)}")


@dataclass(slots=True)
class Resident:
    """A model that has bytes in the budget."""

    model: str
    serial: int
    estimated: int
    state: State = State.LOADING
    started: bool = False
    retried: bool = False  # the one retry after running out of memory is used up
    measured: int | None = None
    growth: int = 0  # what adapters may still add to the measurement
    leases: set[int] = field(default_factory=set)
    idle_since: float = 0.0
    story: deque[tuple[float, str]] = field(default_factory=lambda: deque(maxlen=16))

    @property
    def size(self) -> int:
        """Bytes: once there is a measurement, that and its growth, until then the estimate."""
        return self.estimated if self.measured is None else self.measured + self.growth

    @property
    def idle(self) -> bool:
        """May be evicted: ready, and nobody uses it."""
        return self.state is State.READY and not self.leases

    def move(self, to: State, at: float, why: str) -> None:
        """The only way a state changes. Raises InvalidTransition."""
        if to not in _MOVES[self.state]:
            raise InvalidTransition(self, to)
        self.state = to
        self.story.append((at, f"{to.name}: {why}"))

    def __repr__(self) -> str:
        uses = f" {len(self.leases)} leases" if self.leases else ""
        pending = "" if self.started or self.state is not State.LOADING else " (waits for room)"
        return f"{self.model} {self.state.name}{pending}{uses}"
