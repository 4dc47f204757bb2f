"""What can be known of a Residency's surroundings from its events and actions alone: the books that a Referee keeps."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from mlx_roster.registry import events
from mlx_roster.registry.policy import STEADY, cooldown


class Phase(Enum):
    LOADING = auto()
    READY = auto()
    DRAINING = auto()
    STOPPING = auto()  # told to unload, or cut
    CANCELLED = auto()  # its load was


@dataclass
class Claim:
    """A ticket that has not left. One that is neither granted nor refused waits."""

    ticket: int
    model: str
    since: float
    exempt: bool
    client: str | None = None
    serial: int | None = None  # what it has, or had, a lease on
    lost: bool = False  # with its worker
    refused: bool = False

    @property
    def waits(self) -> bool:
        return self.serial is None and not self.refused


@dataclass
class Search:
    """Somebody looks for a model's files."""

    model: str
    progressed: float


@dataclass
class Worker:
    """A process that loads a model, or has it. `size` and `taken`: what it needs, and what nobody else can have."""

    model: str
    serial: int
    health: Health
    version: object
    sizing: object
    size: int
    progressed: float
    phase: Phase = Phase.LOADING
    taken: int = 0
    settled: int = 0  # its size when it was loaded, the least that it is entitled to
    measured: int = 0
    growth: int = 0
    spare: int = 0
    loaded: float = 0.0
    cut: bool = False
    awaited: float | None = None  # since when it has been at one thing

    def measure(self, event: events.Loaded | events.Reported) -> None:
        self.measured, self.growth = event.measured, event.growth
        self.spare = event.spare if isinstance(event, events.Reported) else 0
        self.size = self.measured - self.spare + self.growth
        self.taken = max(self.size, self.measured)

    @property
    def stays(self) -> bool:
        return self.phase in (Phase.LOADING, Phase.READY)


@dataclass
class Health:
    """What is known of a model, as long as its entry stays what it is."""

    version: object
    sizing: object
    entry_pinned: bool
    size: int | None = None
    failures: int = 0
    crashes: int = 0
    cools: float = 0.0
    pinned: bool | None = None

    def failed(self, at: float) -> None:
        self.failures, self.size = self.failures + 1, None
        self.cools = at + cooldown(self.failures)

    def crashed(self, at: float, lived: float) -> None:
        self.crashes = self.crashes + 1 if lived < STEADY else 1
        self.cools = at + cooldown(self.crashes - 1)
