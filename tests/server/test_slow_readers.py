"""Clients that do not read what they asked for."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from contextlib import suppress

import pytest

from mlx_roster.registry.overview import Reload
from tests.server.harness import TIMEOUT, Running, post, read_until, running
from tests.server.talking import GET, SHORT, left, looked


def listless(server: Running, request: bytes, window: int = 4096) -> socket.socket:
    """A client that asks and does not read: the kernel takes about `window` bytes for it."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
    sock.settimeout(TIMEOUT)
    sock.connect(("127.0.0.1", server.port))
    sock.sendall(request)
    return sock


def streaming(prompt: str, **more: object) -> bytes:
    body = {"model": "atlas", "prompt": prompt, "stream": True, **more}
    return post("/v1/completions", json.dumps(body).encode())


@pytest.mark.parametrize("limit", [{"write_timeout": SHORT}, {"write_buffer": "200KB", "write_timeout": "1h"}], ids=str)
@pytest.mark.parametrize("choices", [1, 3])
def test_slow_reader_is_cut_off_without_harming_others(
    limit: dict[str, str], choices: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with running(server=limit) as server, server.client() as client:
        server.pieces = lambda generation: ["x" * 100] * 10**6 if "slow" in str(generation.prompt) else ["a", "b", "c"]
        with listless(server, streaming("slow", n=choices)) as sock, client.stream("GET", "/admin/events") as events:
            lines = events.iter_lines()
            server.seen("cancel atlas", choices)
            server.idle()
            assert "event: state" in next(lines)
            body = {"model": "atlas", "prompt": "hi", "stream": True}
            answer = client.post("/v1/completions", json=body)
            assert answer.text.endswith("data: [DONE]\n\n")
            # It was cut, so even what had been sent does not end as an answer does.
            assert b"[DONE]" not in left(sock)
        assert not server.registry.listing()[0].in_flight
    lines = [record.getMessage() for record in caplog.records if record.name == "mlx_roster.server.boundary"]
    assert any("slow_reader" in line for line in lines), lines


def test_a_whole_answer_that_nobody_takes_is_cut_off_too() -> None:
    with running(server={"write_timeout": SHORT, "idle_timeout": "1h"}) as server:
        server.pieces = lambda _: ["x" * 10**6] * 10
        with listless(server, streaming("slow", stream=False)) as sock:
            server.seen("submit atlas")
            server.until(lambda: not server.uvicorn.server_state.connections)
            assert len(left(sock)) < 10**7


def test_a_large_whole_answer_may_be_read_slowly() -> None:
    """As long as it goes on: it is not what is called too much waiting, for there was no reading it before."""
    request = streaming("slow", stream=False).replace(b"HTTP/1.1", b"HTTP/1.0")
    with running(server={"write_timeout": SHORT, "write_buffer": "100KB"}) as server:
        server.pieces = lambda _: ["x" * 10**6] * 3
        with listless(server, request, window=65536) as sock:
            received = 0
            while chunk := sock.recv(100_000, socket.MSG_WAITALL):
                received += len(chunk)
                if received < 10**6:
                    looked(server, 1)
        assert received > 3 * 10**6


def test_who_does_not_read_events_is_cut_off() -> None:
    request = GET.replace(b"/health", b"/admin/events") + b"\r\n"
    with running(server={"write_timeout": SHORT}) as server, listless(server, request) as sock:
        read_until(sock, b"event: state")
        while server.uvicorn.server_state.connections:
            server.call(said(server, 50))
        left(sock)


async def said(server: Running, times: int) -> None:
    for _ in range(times):
        server.registry.reload_ended(Reload(0.0, ok=False, error="x" * 4000))
        await asyncio.sleep(0)


def test_reading_now_and_then_is_not_reading() -> None:
    with running(server={"write_timeout": SHORT}) as server:
        server.pieces = lambda _: ["x" * 100] * 10**6
        with listless(server, streaming("slow")) as sock:
            server.seen("submit atlas")
            sock.settimeout(0.01)
            while server.uvicorn.server_state.connections:
                with suppress(TimeoutError, ConnectionResetError):
                    sock.recv(1)
        server.seen("cancel atlas")
