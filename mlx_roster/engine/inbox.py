"""What the engine is told, from any thread, to be done between two steps."""

from __future__ import annotations

import queue
import threading
import time
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
        self._lock = threading.Lock()
        self._put = self._taken = 0
        #: Since when there is something in it that the engine has not dealt with, in `time.monotonic()`.
        self.since: float | None = None

    def put(self, command: Command) -> None:
        with self._lock:
            self._put += 1
            if self.since is None:
                self.since = time.monotonic()
            self._queue.put(command)

    def drain(self, block: bool, timeout: float | None = None) -> list[Command]:
        """All that has come: what came the last time has been dealt with. With `block`, waits for the first; an empty
        list then means that `timeout` has passed."""
        with self._lock:
            self.since = time.monotonic() if self._put > self._taken else None
        commands = self._drained(block, timeout)
        self._taken += len(commands)
        return commands

    def _drained(self, block: bool, timeout: float | None) -> list[Command]:
        commands: list[Command] = []
        try:
            if block:
                commands.append(self._queue.get(timeout=timeout))
            while True:
                commands.append(self._queue.get_nowait())
        except queue.Empty:
            return commands
