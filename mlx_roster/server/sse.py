"""Server-sent events over raw ASGI."""

from __future__ import annotations

import asyncio

from starlette.types import Send

DONE = b"data: [DONE]\n\n"

_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    # Or nginx collects the stream before it passes it on.
    (b"x-accel-buffering", b"no"),
]


def comment(words: str) -> bytes:
    """What clients skip. It keeps them, and proxies, from taking a silent connection for a dead one."""
    return b": " + words.encode() + b"\n\n"


#: Where there is nothing in particular to say.
COMMENT = comment("still here")


def event(payload: bytes, name: bytes | None = None) -> bytes:
    """One event. `payload` is JSON on one line."""
    data = b"data: " + payload + b"\n\n"
    return data if name is None else b"event: " + name + b"\n" + data


class EventStream:
    """A streaming response. Its status line goes out with its first event, so until then an error can still choose
    a status of its own. `write` may be called from several tasks; each call goes out whole."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._started = False
        #: When something was written last, on the event loop's clock, and whether that was the end.
        self.written = 0.0
        self.ended = False

    async def write(self, events: bytes) -> None:
        """Put one or more whole events on the wire, now."""
        await self._start()
        self.written = asyncio.get_running_loop().time()
        await self._send({"type": "http.response.body", "body": events, "more_body": True})

    async def end(self, events: bytes = b"") -> None:
        """The last events, and the end of the response."""
        await self._start()
        self.ended = True
        await self._send({"type": "http.response.body", "body": events, "more_body": False})

    async def _start(self) -> None:
        if not self._started:
            self._started = True
            await self._send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
