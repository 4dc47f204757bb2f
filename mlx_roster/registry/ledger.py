"""All Residents, and what can be said of them together without going through them all."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Collection, Iterator

from mlx_roster.registry.eviction import Candidate
from mlx_roster.registry.policy import Terms
from mlx_roster.registry.record import Record
from mlx_roster.registry.resident import Resident, State


class Ledger:
    """The Residents by serial. Whoever changes one of them calls `touch` after it.

    `due` says when a Resident is to be looked after if nothing is heard of it until then; infinity is never.
    """

    def __init__(self, due: Callable[[Resident], float]) -> None:
        self.last_serial = 0
        #: What the Residents that stay will take, and what is taken right now, by whomever.
        self.committed = 0
        self.held = 0
        #: Those that have been touched since somebody last emptied this.
        self.touched: set[int] = set()
        self._residents: dict[int, Resident] = {}
        # Parts of it: those that stay, by model; loads that wait for memory that is coming free; those that leave.
        self._current: dict[str, Resident] = {}
        self._pending: dict[int, Resident] = {}
        self._leaving: dict[int, Resident] = {}
        # What each adds to the sums, and when each is due. Entries of the heap that `_dues` does not have are outdated.
        self._counted: dict[int, tuple[int, int]] = {}
        self._due = due
        self._dues: dict[int, float] = {}
        self._heap: list[tuple[float, int]] = []

    def __iter__(self) -> Iterator[Resident]:
        return iter(self._residents.values())

    def __len__(self) -> int:
        return len(self._residents)

    def __getitem__(self, serial: int) -> Resident:
        return self._residents[serial]

    def get(self, serial: int) -> Resident | None:
        return self._residents.get(serial)

    def current(self, model: str) -> Resident | None:
        """The model's Resident that is loading or ready."""
        return self._current.get(model)

    def current_ones(self) -> Collection[Resident]:
        """All that are loading or ready."""
        return self._current.values()

    def departing(self, model: str) -> list[Resident]:
        """The model's Residents that are on their way out: one for each version that it has had lately."""
        return [resident for resident in self._leaving.values() if resident.model == model]

    def pending(self) -> list[Resident]:
        """Admitted loads that wait for memory that is coming free, in the order of their admission."""
        return list(self._pending.values())

    @property
    def leaving(self) -> bool:
        """Whether memory is coming free."""
        return bool(self._leaving)

    @property
    def next_due(self) -> float:
        """When the first of all is due."""
        while self._heap and self._dues.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else math.inf

    def add(self, record: Record, size: int, terms: Terms, *, pinned: bool) -> Resident:
        self.last_serial += 1
        resident = Resident(record, self.last_serial, size, terms.version, terms.sizing, pinned)
        self._residents[resident.serial] = self._current[record.model] = resident
        self.touch(resident)
        return resident

    def touch(self, resident: Resident) -> None:
        """Anything about it is otherwise than before."""
        serial, stays = resident.serial, resident.stays
        self.touched.add(serial)
        before = self._counted.pop(serial, (0, 0))
        now = (resident.size if stays else 0, resident.taken) if resident.state is not State.GONE else (0, 0)
        self.committed += now[0] - before[0]
        self.held += now[1] - before[1]
        if not stays and self._current.get(resident.model) is resident:
            del self._current[resident.model]
        if resident.state is State.LOADING and resident.started is None:
            self._pending[serial] = resident
        else:
            self._pending.pop(serial, None)
        if resident.state is State.GONE:
            del self._residents[serial]
            self._leaving.pop(serial, None)
            self._dues.pop(serial, None)
            return
        self._counted[serial] = now
        if not stays:
            self._leaving[serial] = resident
        self._expect(resident)

    def _expect(self, resident: Resident) -> None:
        due = self._due(resident)
        if due != self._dues.get(resident.serial, math.inf):
            self._dues[resident.serial] = due
            if due != math.inf:
                heapq.heappush(self._heap, (due, resident.serial))

    # Room

    def idle(self) -> list[Candidate]:
        """Those that may go at once."""
        return [
            Candidate(one.serial, one.size, one.idle_since)
            for one in self._current.values()
            if not one.leases and not one.pinned and one.state is State.READY
        ]

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
