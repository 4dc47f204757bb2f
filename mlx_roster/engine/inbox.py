"""What the engine is told, from any thread, to be done between two steps."""

from __future__ import annotations

import queue
from dataclasses import dataclass

from mlx_roster.core import Limits
from mlx_roster.engine.sequences import Cancel, Fetched, Rejection, Sequence


@dataclass(frozen=True, slots=True)
class Stop:
    """End `run`."""


@dataclass(frozen=True, slots=True)
class Share:
    """What the engine may take from now on, in bytes."""

    size: int


Command = Sequence | Fetched | Cancel | Rejection | Share | Limits | Stop


class Inbox:
    """Commands on their way to the engine's thread, in order."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self.put = self._queue.put

    def drain(self, block: bool, timeout: float | None = None) -> list[Command]:
        """All that has come. With `block`, waits for the first; an empty list then means that `timeout` has passed."""
        commands: list[Command] = []
        try:
            if block:
                commands.append(self._queue.get(timeout=timeout))
            while True:
                commands.append(self._queue.get_nowait())
        except queue.Empty:
            return commands
