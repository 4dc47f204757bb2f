"""What an engine counts of its work, for whoever runs the server."""

from __future__ import annotations

import time
from collections.abc import Callable

from mlx_roster.core import Counters
from mlx_roster.engine.memory import Memory
from mlx_roster.engine.prefixes import Prefixes
from mlx_roster.engine.scheduler import Scheduler
from mlx_roster.engine.slots import Slots

#: How old what was last said may become while there is work, in seconds.
PERIOD = 1.0


class Tally:
    """Counts, for the engine's thread. There are no `slots` where the model can have no adapters.

    `running` are the bytes of the caches of all that runs: asked for rarely, since that takes a while.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        slots: Slots | None,
        memory: Memory,
        prefixes: Prefixes,
        running: Callable[[], int],
    ) -> None:
        self.steps = 0
        self.placed = 0
        self._queried = 0
        self._hits = 0
        self._scheduler = scheduler
        self._slots = slots
        self._memory = memory
        self._prefixes = prefixes
        self._running = running
        self._kv = 0
        self._when = time.monotonic()

    def looked_up(self, prompt: int, cached: int) -> None:
        """Of a prompt of so many tokens, so many were found in the prompt cache."""
        if self._prefixes.keeps:
            self._queried += prompt
            self._hits += cached

    @property
    def due(self) -> bool:
        """Whether it is time to say it all again."""
        return time.monotonic() - self._when >= PERIOD

    def weighed(self) -> Counters:
        """All of it, sizes too."""
        self._kv, self._when = self._running(), time.monotonic()
        return self.counters()

    def counters(self) -> Counters:
        """All of it, with the size of running sequences as it was last `weighed`. From any thread."""
        slots = self._slots
        running, waiting = self._scheduler.load
        return Counters(
            steps=self.steps,
            queried=self._queried,
            hits=self._hits,
            placed=self.placed,
            displaced=0 if slots is None else slots.displaced,
            running=running,
            waiting=waiting,
            slots=0 if slots is None else slots.count,
            filled=0 if slots is None else slots.filled,
            kv=self._kv,
            reserved=self._memory.limits.kv,
            prompts=self._prefixes.nbytes,
        )
