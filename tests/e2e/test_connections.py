"""Many connections, and connections that end at the wrong moment: a real server, over sockets."""

from __future__ import annotations

import asyncio
import json
import random
import resource
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

from mlx_roster.server.descriptors import RESERVE
from tests.serving import PATIENCE, Server, demo_roster, serving
from tests.toys import babbler

BURST = 512
CYCLES = 1000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    # As macOS starts programs: with fewer files to open than this takes, and the right to more.
    with serving("serve", str(demo_roster(tmp_path_factory.mktemp("burst"))), ulimit="-S -n 256") as server:
        yield server


def address(server: Server) -> tuple[str, int]:
    url = httpx2.URL(server.url)
    assert url.port is not None
    return url.host, url.port


def busy(server: Server) -> list[dict[str, Any]]:
    """The models that have something to do."""
    models = [model["roster"] for model in httpx2.get(f"{server.url}/models", timeout=PATIENCE).json()["data"]]
    return [model for model in models if model["in_flight"] or model["queued"]]


def request(body: dict[str, Any], path: str = "/v1/chat/completions") -> bytes:
    encoded = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
    return f"{head}Content-Length: {len(encoded)}\r\n\r\n".encode() + encoded


def chat(words: str, **more: Any) -> dict[str, Any]:
    return {"model": "atlas", "messages": [{"role": "user", "content": words}], "max_tokens": 2, **more}


def test_burst_of_512_connections_loses_none(server: Server) -> None:
    async def one(number: int, all_there: asyncio.Barrier) -> bytes:
        reader, writer = await asyncio.open_connection(*address(server))
        try:
            await all_there.wait()
            writer.write(request(chat("hi", stream=bool(number % 2))))
            return await reader.read()
        finally:
            writer.close()

    async def burst() -> list[bytes]:
        all_there = asyncio.Barrier(BURST)
        async with asyncio.timeout(PATIENCE * 4), asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(number, all_there)) for number in range(BURST)]
        return [task.result() for task in tasks]

    answers = asyncio.run(burst())
    assert [answer[:15] for answer in answers] == [b"HTTP/1.1 200 OK"] * BURST
    for number, answer in enumerate(answers):
        assert answer.rstrip(b"\r\n0").endswith(b"data: [DONE]") if number % 2 else b'"finish_reason"' in answer


def open_files(server: Server) -> int:
    return psutil.Process(server.process.pid).num_fds()


def settled(server: Server, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, (open_files(server), busy(server))


async def leave(server: Server, step: int, rng: random.Random) -> None:
    """Connect, and go: before the headers, among them, in the body, while it loads or waits, in the stream."""
    sent = request({**chat("hi", max_tokens=200, stream=True), "model": "atlas" if step % 50 else "scribe"})
    reader, writer = await asyncio.open_connection(*address(server))
    writer.write(sent[: [0, rng.randrange(1, 60), rng.randrange(100, len(sent)), len(sent), len(sent)][step % 5]])
    if step % 5 == 4:
        await reader.read(rng.randrange(1, 2000))
    if rng.random() < 0.5:
        writer.transport.abort()
    else:
        writer.close()


async def cycles(server: Server, count: int, rng: random.Random) -> None:
    together = asyncio.Semaphore(20)

    async def one(step: int) -> None:
        async with together:
            await leave(server, step, rng)

    async with asyncio.timeout(PATIENCE * 4), asyncio.TaskGroup() as group:
        for step in range(count):
            group.create_task(one(step))


def test_thousand_connects_and_disconnects_leak_nothing(server: Server) -> None:
    rng = random.Random(7)
    asyncio.run(cycles(server, 50, rng))
    settled(server, lambda: not busy(server))
    # Where the answers are the same as before, no row has stayed in the batch.
    ask = {**chat("hi", max_tokens=20), "temperature": 0}
    before, said = open_files(server), server.client().chat.completions.create(**ask)
    asyncio.run(cycles(server, CYCLES, rng))
    settled(server, lambda: not busy(server))
    settled(server, lambda: open_files(server) <= before)
    assert len(psutil.Process(server.process.pid).children()) <= 3  # two models and a spare
    assert server.client().chat.completions.create(**ask).choices == said.choices


@asynccontextmanager
async def held(server: Server, count: int) -> AsyncIterator[list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]:
    """So many connections that say nothing."""
    connections: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
    try:
        while len(connections) < count:
            connections.append(await asyncio.open_connection(*address(server)))
        yield connections
    finally:
        for _, writer in connections:
            writer.close()


#: mlx-lm asks for so many and does not start with less.
LIMIT = 4096


def test_clients_that_take_all_connections_stop_nobody_else(tmp_path: Path) -> None:
    """With few files to open: streams go on, an open connection is answered, models are loaded, and room comes back."""
    # The server keeps some of its files for itself, so this test gets along with as few.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, LIMIT), hard))
    roster = demo_roster(tmp_path)
    roster.write_text("server: {header_timeout: 1h}\n" + roster.read_text())
    with serving("serve", str(roster), ulimit=f"-n {LIMIT}") as server:
        asyncio.run(_crowded(server))


async def _crowded(server: Server) -> None:
    process = psutil.Process(server.process.pid)
    ask = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    stream_reader, stream = await asyncio.open_connection(*address(server))
    stream.write(request(chat("hi", max_tokens=400, stream=True, ignore_eos=True)))
    await stream_reader.readuntil(b"data: ")
    reader, writer = await asyncio.open_connection(*address(server))
    loading_reader, loading = await asyncio.open_connection(*address(server))
    async with asyncio.timeout(PATIENCE * 2):
        async with held(server, LIMIT - RESERVE) as connections:
            # The last ones were refused, as HTTP or at once.
            assert (await connections[-1][0].read(12)) in (b"", b"HTTP/1.1 503")
            writer.write(ask)
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
            loading.write(request({**chat("hi"), "model": "scribe"}))
            assert (await loading_reader.read()).startswith(b"HTTP/1.1 200")
            assert (await stream_reader.read()).endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
            assert process.num_fds() < LIMIT
        while True:
            again_reader, again = await asyncio.open_connection(*address(server))
            again.write(ask.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
            answer = await again_reader.read()
            again.close()
            if answer.startswith(b"HTTP/1.1 200"):
                break
    for one in (stream, writer, loading):
        one.close()


def test_slow_reader_is_cut_off_without_harming_others(tmp_path: Path) -> None:
    models = [f"  babbler: {{source: {babbler(tmp_path / 'babbler')}, max_context: 8192}}"]
    roster = demo_roster(tmp_path, models=models)
    roster.write_text("server: {write_timeout: 500ms}\n" + roster.read_text())
    long = {"model": "babbler", "max_tokens": 2500, "ignore_eos": True, "stream": True, "temperature": 0}
    with serving("serve", str(roster)) as server, socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(address(server))
        sock.sendall(request({**chat("hi"), **long, "n": 8}))
        with httpx2.stream(
            "POST", f"{server.url}/chat/completions", json={**chat("hi"), **long}, timeout=PATIENCE
        ) as other:
            lines = list(other.iter_lines())
        server.logged(r"cut off request \S+ its client took next to nothing for 0.5 s")
        server.logged(r"POST /v1/chat/completions 499 slow_reader")
        settled(server, lambda: not busy(server))
        assert lines[-2:] == ["data: [DONE]", ""]
        assert "length" in lines[-4]
