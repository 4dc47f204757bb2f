"""What is remembered of a model from one Resident to the next."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from mlx_roster.registry.policy import STEADY, Terms, cooldown

#: How much of a lease's duration goes into the mean of all before it.
_WEIGHT = 0.2


@dataclass(slots=True, eq=False)
class Record:
    """A model that was asked for. `size` is None where its files have to be looked at (again)."""

    model: str
    version: object
    sizing: object
    entry_pinned: bool
    size: int | None = None
    estimate: int | None = None
    #: Seconds: how long its last load took, and a lease on it takes on average.
    load_time: float | None = None
    lease_time: float | None = None
    failures: int = 0
    crashes: int = 0
    #: It is left alone until then.
    cools_until: float = 0.0
    trouble: str = ""
    #: An operator's word; None: the entry's.
    pinned: bool | None = None
    story: deque[tuple[float, str]] = field(default_factory=lambda: deque(maxlen=16))

    def note(self, at: float, what: str) -> None:
        self.story.append((at, what))

    def follow(self, terms: Terms) -> None:
        """Forget what no longer holds now that the roster says `terms`."""
        if terms.version != self.version:
            self.failures = self.crashes = 0
            self.cools_until, self.load_time, self.lease_time, self.pinned = 0.0, None, None, None
        if terms.version != self.version or terms.sizing != self.sizing:
            self.size = self.estimate = None
        if terms.pin != self.entry_pinned:
            self.pinned = None
        self.version, self.sizing, self.entry_pinned = terms.version, terms.sizing, terms.pin

    def failed(self, at: float, why: str) -> None:
        """A load has failed: the next one has to wait, and will look at the files again."""
        self.trouble = why
        self.failures += 1
        self.size = None
        self.cools_until = at + cooldown(self.failures)

    def crashed(self, at: float, lived: float) -> None:
        """A worker was lost after `lived` seconds. Once may be chance: the next load need not wait."""
        self.crashes = self.crashes + 1 if lived < STEADY else 1
        self.trouble = f"its worker has crashed {self.crashes} times in a row"
        self.cools_until = at + cooldown(self.crashes - 1)

    def loaded(self, took: float, size: int, sizing: object) -> None:
        """A load that took so many seconds has succeeded. What it measures holds for the `sizing` it was begun with."""
        self.failures, self.cools_until, self.load_time = 0, 0.0, took
        if sizing == self.sizing:
            self.size = size

    def leased(self, seconds: float) -> None:
        """A lease of so many seconds has ended."""
        before = seconds if self.lease_time is None else self.lease_time
        self.lease_time = before + _WEIGHT * (seconds - before)
