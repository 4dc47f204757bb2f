"""All Residents, and the sums over their bytes."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator

from mlx_roster.registry.eviction import Candidate
from mlx_roster.registry.policy import Terms
from mlx_roster.registry.record import Record
from mlx_roster.registry.resident import Resident, State


class Ledger:
    """The Residents by serial, and by model those that stay. Whoever changes one of them calls `touch` after it."""

    def __init__(self) -> None:
        self._residents: dict[int, Resident] = {}
        self._current: dict[str, Resident] = {}
        self.last_serial = 0
        self._committed: int | None = 0
        self._held: int | None = 0

    def __iter__(self) -> Iterator[Resident]:
        return iter(self._residents.values())

    def __len__(self) -> int:
        return len(self._residents)

    def get(self, serial: int) -> Resident | None:
        return self._residents.get(serial)

    def __getitem__(self, serial: int) -> Resident:
        return self._residents[serial]

    def current(self, model: str) -> Resident | None:
        """The model's Resident that is loading or ready."""
        return self._current.get(model)

    def current_ones(self) -> Collection[Resident]:
        """All that are loading or ready."""
        return self._current.values()

    def departing(self, model: str) -> list[Resident]:
        """The model's Residents that are on their way out: one for each version that it has had lately."""
        return [resident for resident in self if resident.model == model and not resident.stays]

    def add(self, record: Record, size: int, terms: Terms, *, pinned: bool) -> Resident:
        self.last_serial += 1
        resident = Resident(record, self.last_serial, size, terms.version, terms.sizing, pinned)
        self._residents[resident.serial] = self._current[record.model] = resident
        self.touch(resident)
        return resident

    def touch(self, resident: Resident) -> None:
        """Its state or its bytes are others than before."""
        self._committed = self._held = None
        if not resident.stays and self._current.get(resident.model) is resident:
            del self._current[resident.model]
        if resident.state is State.GONE:
            del self._residents[resident.serial]

    # Sums

    @property
    def committed(self) -> int:
        """What the Residents that stay will take."""
        if self._committed is None:
            self._committed = sum(resident.size for resident in self._current.values())
        return self._committed

    @property
    def held(self) -> int:
        """What is taken right now, by whomever."""
        if self._held is None:
            self._held = sum(resident.taken for resident in self)
        return self._held

    def pending(self) -> list[Resident]:
        """Admitted loads that wait for memory that is coming free."""
        return [one for one in self._current.values() if one.state is State.LOADING and one.started is None]

    def leaving(self) -> bool:
        """Whether memory is coming free."""
        return len(self._residents) > len(self._current)

    # Room

    def idle(self) -> list[Candidate]:
        """Those that may go at once."""
        return [Candidate(one.serial, one.size, one.idle_since) for one in self if one.idle and not one.pinned]

    def closable(self, at: float) -> list[Candidate]:
        """Those that may go for one who has waited too long: the idle, and the busy that are no longer fresh.

        The busy come last, and of them the one that was loaded first.
        """
        busy = [
            Candidate(one.serial, one.size, math.inf)
            for one in self._current.values()
            if one.state is State.READY and one.leases and not one.pinned and one.fresh_until <= at
        ]
        return [*self.idle(), *busy]
