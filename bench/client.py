"""The client, a process of its own: raw HTTP/1.1 on uvloop, which counts events and decodes none of them.

It shares the machine with the servers that it measures, so what it does per chunk is next to nothing; and it is the
same for all of them. Commands come as JSON lines on standard input, answers go to standard output (`traffic.Client`).
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any, cast

import uvloop

#: What is kept of the end of a response: room for the usage and `[DONE]`.
TAIL = 1024
_USAGE = re.compile(rb'"completion_tokens": ?(\d+)')
_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3})")


class Exchange(asyncio.Protocol):
    """One request on a connection of its own. `ended` is set when nothing more will come."""

    def __init__(self, request: bytes, stamps: list[float] | None = None) -> None:
        self.begun = time.perf_counter()
        self.ended = asyncio.Event()
        self.first_event = asyncio.Event()
        self.connected = self.first = self.last = 0.0
        self.events = 0
        self.error: str | None = None
        self._request = request
        self._stamps = stamps
        self._head = b""
        self._tail = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.connected = time.perf_counter()
        # uvloop's transports are not registered as asyncio's, so there is nothing to assert.
        self._transport = cast("asyncio.Transport", transport)
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        if not self._head:
            self._head = data[:32]
        events = data.count(b"data: ")
        if events:
            if not self.events:
                self.first = now
                self.first_event.set()
            self.events += events
            if self._stamps is not None:
                self._stamps.append(now)
        tail = self._tail + data
        self._tail = tail[-TAIL:]
        if b"[DONE]" in tail:
            self.last = now
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.last:
            self.fail(f"the connection was lost: {exc}" if exc else f"no stream: {self._tail[-200:]!r}")

    def fail(self, error: str) -> None:
        if not self.ended.is_set():
            self.error = error
            self.ended.set()
            self.first_event.set()

    def close(self) -> None:
        self.ended.set()
        if self._transport is not None:
            self._transport.close()

    def result(self) -> dict[str, Any]:
        """Times are seconds since the request began."""
        status = _STATUS.match(self._head)
        usage = _USAGE.findall(self._tail)
        return {
            "begun": self.begun,
            "connect": self.connected - self.begun if self.connected else None,
            "first": self.first - self.begun if self.first else None,
            "total": self.last - self.begun if self.last else None,
            "ended": self.last,
            "events": self.events,
            "tokens": int(usage[-1]) if usage else 0,
            "status": int(status[1]) if status else None,
            "error": self.error,
        }


def _request(host: str, port: int, body: dict[str, Any]) -> bytes:
    payload = json.dumps(body).encode()
    path = "/v1/completions" if "prompt" in body else "/v1/chat/completions"
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(payload)}\r\n\r\n"
    )
    return head.encode() + payload


async def _open(exchange: Exchange, host: str, port: int) -> None:
    try:
        await asyncio.get_running_loop().create_connection(lambda: exchange, host, port)
    except OSError as error:
        exchange.fail(f"not connected: {error.strerror or error}")


async def wave(host: str, port: int, bodies: list[dict[str, Any]], patience: float) -> list[dict[str, Any]]:
    """All requests at once, each on a connection of its own, until each has ended."""
    requests = [_request(host, port, body) for body in bodies]
    exchanges = [Exchange(request) for request in requests]
    connecting = [asyncio.ensure_future(_open(exchange, host, port)) for exchange in exchanges]
    try:
        async with asyncio.timeout(patience):
            for exchange in exchanges:
                await exchange.ended.wait()
    except TimeoutError:
        for exchange in exchanges:
            exchange.fail("no answer in time")
            exchange.close()
    for task in connecting:
        task.cancel()
    await asyncio.gather(*connecting, return_exceptions=True)
    return [exchange.result() for exchange in exchanges]


async def disturbed(
    host: str, port: int, stream: dict[str, Any], disturbance: dict[str, Any], before: float, patience: float
) -> dict[str, Any]:
    """A long stream, into which a second request comes `before` seconds after its first token.

    Ends with the second one; `stamps` are the times at which chunks of the long stream came.
    """
    stamps: list[float] = []
    long = Exchange(_request(host, port, stream), stamps)
    await _open(long, host, port)
    await long.first_event.wait()
    await asyncio.sleep(before)
    short = Exchange(_request(host, port, disturbance))
    await _open(short, host, port)
    try:
        async with asyncio.timeout(patience):
            await short.ended.wait()
    except TimeoutError:
        short.fail("no answer in time")
    running = not long.ended.is_set()
    long.close()
    short.close()
    return {"stamps": stamps, "running": running, "error": long.error, "disturbance": short.result()}


async def pool(
    host: str, port: int, bodies: list[dict[str, Any]], concurrency: int, patience: float
) -> list[dict[str, Any]]:
    """All requests in their order, `concurrency` at a time: the next one begins when any has ended."""
    results: list[dict[str, Any]] = [{}] * len(bodies)
    waiting = iter(enumerate(bodies))

    async def one_after_the_other() -> None:
        for number, body in waiting:
            results[number] = (await wave(host, port, [body], patience))[0]

    await asyncio.gather(*(one_after_the_other() for _ in range(concurrency)))
    return results


async def joined(
    host: str,
    port: int,
    stream: dict[str, Any],
    joining: list[dict[str, Any]],
    before: float,
    pause: float,
    patience: float,
) -> dict[str, Any]:
    """A long stream, beside which other requests come one at a time, `pause` seconds after the one before has ended.

    The first comes `before` seconds after the long one's first token. Ends `pause` after the last one;
    `stamps` are the times at which chunks of the long stream came.
    """
    stamps: list[float] = []
    long = Exchange(_request(host, port, stream), stamps)
    await _open(long, host, port)
    await long.first_event.wait()
    await asyncio.sleep(before)
    results = []
    for body in joining:
        results += await wave(host, port, [body], patience)
        await asyncio.sleep(pause)
    running = not long.ended.is_set()
    long.close()
    return {"stamps": stamps, "running": running, "error": long.error, "joined": results}


async def serve() -> None:
    """Obey until standard input ends."""
    loop = asyncio.get_running_loop()
    operations: dict[str, Callable[..., Awaitable[Any]]] = {
        "wave": wave,
        "disturbed": disturbed,
        "pool": pool,
        "joined": joined,
    }
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        command = json.loads(line)
        print(json.dumps(await operations[command.pop("op")](**command)), flush=True)


if __name__ == "__main__":
    uvloop.run(serve())
