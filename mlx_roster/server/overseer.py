"""Who looks at the clients' connections, so that no request and no token needs a timer of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from mlx_roster.config import ServerSettings

#: How often connections are looked at, in seconds, and how often within the shortest of their deadlines.
EVERY = 1.0
PER_DEADLINE = 5


class Watched(Protocol):
    """A connection, as far as its deadlines go."""

    def look(self, now: float, settings: ServerSettings) -> None:
        """To be called every now and then, with the event loop's time: ends what has taken too long."""


class Watch:
    """Looks at all connections every now and then, as long as there are any."""

    def __init__(self, settings: Callable[[], ServerSettings]) -> None:
        self._settings = settings
        self._connections: set[Watched] = set()
        self._running = False
        #: How often it has looked.
        self.looks = 0

    def add(self, connection: Watched) -> None:
        self._connections.add(connection)
        if not self._running:
            self._running = True
            self._arm()

    def discard(self, connection: Watched) -> None:
        self._connections.discard(connection)

    def _arm(self) -> None:
        settings = self._settings()
        shortest = min(settings.header_timeout, settings.write_timeout)
        asyncio.get_running_loop().call_later(min(EVERY, shortest / PER_DEADLINE), self._look)

    def _look(self) -> None:
        self.looks += 1
        if not self._connections:
            self._running = False
            return
        # First of all: whatever becomes of this look, there will be another.
        self._arm()
        settings, now = self._settings(), asyncio.get_running_loop().time()
        for connection in list(self._connections):
            connection.look(now, settings)
