"""When a Residency is to be looked at next, and what loads, downloads and workers have come to by then."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping

from mlx_roster.registry import events
from mlx_roster.registry.holding import Holding
from mlx_roster.registry.searches import Searches
from mlx_roster.registry.state import Residency

#: A timer that has come a little early is not set again for less than this, in seconds.
SHORTEST = 0.001

#: How often downloads are looked at, in seconds: a part of the least that a load_timeout may be.
SAMPLE = 1.0

#: Workers are looked at so many times in the time that they may get nowhere.
LOOKS = 4

#: A timer that comes so many seconds late says that this process itself stood still.
LATE = 1.0


class Rounds:
    """Sees to it that the state hears of time, of which nothing else tells it, and first of what has got any further.

    `holdings` are those of all workers, by serial. `plan` after every event; `end` when nothing more is fed.
    """

    def __init__(
        self,
        state: Residency,
        searches: Searches,
        holdings: Mapping[int, Holding],
        feed: Callable[[events.Event], None],
        clock: Callable[[], float],
    ) -> None:
        self._state = state
        self._searches = searches
        self._holdings = holdings
        self._feed = feed
        self._now = clock
        self._timer: asyncio.TimerHandle | None = None
        self._due = math.inf
        self._sampled = 0.0
        #: When the timer is to ring, and when it last did so much too late.
        self._rings = math.inf
        self._awoke = -math.inf

    def plan(self) -> None:
        """Set the timer for what falls due next."""
        due = self._state.wake
        if self._searches.going:
            # How far downloads are is known only when they are looked at.
            due = min(due, self._sampled + SAMPLE)
        if self._holdings:
            # Nor does anything say that a worker hangs.
            due = min(due, self._sampled + self._state.board.policy.stall_timeout / LOOKS)
        if due == self._due:
            return
        self._due = due
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._rings = None, math.inf
        if not math.isinf(due):
            delay = max(due - self._now(), SHORTEST)
            self._rings = self._now() + delay
            self._timer = asyncio.get_running_loop().call_later(delay, self.go)

    def go(self) -> None:
        """Something may be due. What has got any further says so first."""
        self._due = math.inf
        at = self._sampled = self._now()
        if at > self._rings + LATE:
            # What the others have said in the meantime has not been heard yet.
            self._awoke = at
        for holding in self._holdings.values():
            since = max(holding.progressed, self._awoke)
            self._state.handle(events.Progressed(at, holding.serial, since, self._awaited(holding)))
        for job in self._searches.going if self._awoke == at else self._searches.progressed():
            self._state.handle(events.LocateProgressed(at, job, at))
        self._feed(events.Tick(at))

    def end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def stalled(self) -> list[str]:
        """The models whose worker has got nowhere for half of the time that it may; and those whose worker is being
        replaced for that."""
        since = self._now() - self._state.board.policy.stall_timeout / 2
        return [
            holding.model
            for holding in self._holdings.values()
            if holding.hung or ((awaited := self._awaited(holding)) is not None and awaited <= since)
        ]

    def _awaited(self, holding: Holding) -> float | None:
        awaited = None if holding.worker is None else holding.worker.awaited
        return None if awaited is None else max(awaited, self._awoke)
