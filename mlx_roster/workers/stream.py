"""The server's end of one sequence."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from mlx_roster.core import Delta
from mlx_roster.errors import RosterError

#: What a Delta takes beside its text, here and on its way to the client, in bytes.
PER_DELTA = 256


class SequenceStream:
    """A mailbox between the worker's link, which fills it, and one request's task, which empties it.

    Both live on the event loop. It satisfies `registry.ports.Stream`.
    """

    __slots__ = ("_cancel", "_deltas", "_ended", "_error", "_wake")

    def __init__(self, cancel: Callable[[], None]) -> None:
        self._cancel = cancel
        self._deltas: list[Delta] = []
        self._error: RosterError | None = None
        self._ended = False
        self._wake: asyncio.Future[None] | None = None

    def push(self, delta: Delta) -> None:
        self._deltas.append(delta)
        self._ended = delta.finish is not None
        self._notify()

    def fail(self, error: RosterError) -> None:
        """End the stream with `error`, after what is in it already."""
        if not self._ended:
            self._error, self._ended = error, True
            self._notify()

    def cancel(self) -> None:
        if not self._ended:
            self._ended = True
            self._cancel()
            self._notify()

    @property
    def unread(self) -> int:
        """See `registry.ports.Stream`. Counted when asked for: most of the time nobody does, and nothing waits."""
        return sum(PER_DELTA + len(delta.text) for delta in self._deltas)

    def waiting(self) -> list[Delta]:
        taken, self._deltas = self._deltas, []
        return taken

    def __aiter__(self) -> SequenceStream:
        return self

    async def __anext__(self) -> Delta:
        while not self._deltas:
            if self._error is not None:
                raise self._error
            if self._ended:
                raise StopAsyncIteration
            self._wake = asyncio.get_running_loop().create_future()
            await self._wake
        return self._deltas.pop(0)

    def _notify(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)
