"""What uvicorn writes to, between it and the socket: counted, and in words that an old client understands."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Any

from uvicorn._types import ASGI3Application, ASGIReceiveCallable, ASGISendCallable, ASGISendEvent, Scope
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

#: Bytes that the kernel may keep back of what is sent, and that therefore look as if they had been taken.
UNSENT = 128 * 1024


class Outgoing(asyncio.Transport):
    """A transport as a response's cycle uses it. Counts what is written."""

    def __init__(self, transport: asyncio.Transport) -> None:
        super().__init__()
        self._transport = transport
        self.written = 0

    def write(self, octets: bytes | bytearray | memoryview) -> None:
        self.written += len(octets)
        self._transport.write(octets)

    def close(self) -> None:
        self._transport.close()

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    @property
    def taken(self) -> int:
        """Bytes that the socket has taken."""
        return self.written - self.waiting

    @property
    def waiting(self) -> int:
        """Bytes that it would not take yet."""
        return self._transport.get_write_buffer_size()


class Unusual:
    """Wraps the application for a request that uvicorn would answer in a way that its client cannot understand."""

    def __init__(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._cycle = cycle
        self._app = app
        self._unsized = False

    async def __call__(self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        await self._app(scope, receive, self._send)

    async def _send(self, message: ASGISendEvent) -> None:
        cycle = self._cycle
        while cycle.flow.write_paused and not cycle.disconnected:
            await cycle.flow.drain()
        if message["type"] == "http.response.start":
            if cycle.waiting_for_100_continue:
                # It was not told to send its body: whether it does, nobody can know.
                cycle.keep_alive = False
            if cycle.scope["http_version"] != "1.1" and not _has_length(message.get("headers", ())):
                # Chunks are unknown to it: its body ends with the connection.
                cycle.chunked_encoding, self._unsized = False, True
        elif message["type"] == "http.response.body" and self._unsized:
            cycle.expected_content_length = len(message.get("body", b""))
        await cycle.send(message)


def _has_length(headers: Any) -> bool:
    return any(name.lower() == b"content-length" for name, _ in headers)


def hold_back_little(transport: asyncio.Transport) -> None:
    """Let the kernel keep less of what a client does not read, where it can be told so."""
    sock = transport.get_extra_info("socket")
    if sock is not None and hasattr(socket, "TCP_NOTSENT_LOWAT"):
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT)
