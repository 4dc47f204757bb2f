"""Noticing that the client has gone, for streaming and for collected responses alike."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

from starlette.types import Receive


class ClientGone(Exception):
    """The client hung up before its request had arrived whole."""


class cancel_on_disconnect:  # noqa: N801  reads as the verb it is, like asyncio.timeout
    """Cancels the body of the `async with` when the client disconnects, and swallows exactly that cancellation.

    Enter it when the request body has been read: from then on the only thing `receive` can say is `http.disconnect`.
    Uvicorn says it after a complete response too, so leave the block without awaiting anything in between that may
    take long. A cancellation from elsewhere (shutdown) goes through, also when both arrive together.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        #: True once the client has left before the body was through.
        self.gone = False

    async def __aenter__(self) -> Self:
        task = asyncio.current_task()
        assert task is not None
        self._body = task
        self._cancelling = task.cancelling()
        self._watcher = asyncio.create_task(self._watch())
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        # Nothing is awaited before this line, so the watcher can no longer cancel a body that is through.
        self._watcher.cancel()
        if not self.gone:
            return False
        # As in asyncio.timeout: what is left above the count at the start is somebody else's cancellation.
        ours = self._body.uncancel() <= self._cancelling
        return ours and exc_type is asyncio.CancelledError

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.gone = True
        self._body.cancel()
