"""What tests of single connections say, and how they listen."""

from __future__ import annotations

import socket

from tests.server.harness import Running

#: For those of which one is awaited.
SHORT = "300ms"

CHAT = {"model": "atlas", "messages": [{"role": "user", "content": "hi"}]}
GET = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"


def everything(sock: socket.socket) -> bytes:
    """What arrives until the server closes."""
    received = b""
    while chunk := sock.recv(65536):
        received += chunk
    return received


def left(sock: socket.socket) -> bytes:
    """What there still is of a connection that the server cuts."""
    try:
        return everything(sock)
    except ConnectionResetError:
        return b""


def looked(server: Running, times: int) -> None:
    """Wait until the server has looked at its connections so often."""
    seen = server.uvicorn.config.watch.looks
    server.until(lambda: server.uvicorn.config.watch.looks >= seen + times)
