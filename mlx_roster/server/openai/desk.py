"""Where bodies become requests, and tokens become answers: on threads beside the event loop, where they are large.

A body of a megabyte may take a second to be checked. The interpreter lets the event loop in between again and again, so
that nobody else's tokens wait for more than a few milliseconds.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from mlx_roster.errors import QueueFull

T = TypeVar("T")

#: Bytes of JSON, about, that are read or written at once: going to another thread and back takes longer.
SMALL = 16 * 1024

#: Each makes the event loop wait a little longer for its turn.
THREADS = 2

#: Bytes of the bodies of all requests, from their arrival to their end. One key's may be half of that. What is made of
#: a body takes as much again, or several times that.
ROOM = 512 * 2**20


class Desk:
    """One for a server. All but the work itself is done on the event loop."""

    def __init__(self, room: int = ROOM) -> None:
        self._threads = ThreadPoolExecutor(THREADS, "desk")
        self._room = room
        self._taken: Counter[str | None] = Counter()

    @contextmanager
    def place(self, client: str | None) -> Iterator[Callable[[int], None]]:
        """For one request of `client`, until it ends: gives what is to be told of each piece of its body that comes,
        by its size. That raises QueueFull where there is no room for it."""
        sizes: list[int] = []

        def put(size: int) -> None:
            full = self._taken.total() + size > self._room
            if full or (client is not None and self._taken[client] + size > self._room // 2):
                raise QueueFull("this server has as many bytes of requests to answer as it can hold", retry_after=5.0)
            self._taken[client] += size
            sizes.append(size)

        try:
            yield put
        finally:
            self._taken[client] -= sum(sizes)
            if not self._taken[client]:
                del self._taken[client]

    async def done(self, size: int, work: Callable[[], T]) -> T:
        """What `work` returns, or raises, which has to do with so many bytes."""
        if size <= SMALL:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)
