"""`/admin/events` over a socket."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import httpx2
import pytest
from starlette.types import Message

from mlx_roster.config import Roster
from mlx_roster.registry import Registry
from mlx_roster.registry.overview import Reload
from mlx_roster.server.boundary import Boundary
from mlx_roster.server.watching import Events
from mlx_roster.testing import FakeSources, FakeWorkers
from tests.server.harness import ROSTER, TIMEOUT, Running, read_until, running


def read(lines: Iterator[str]) -> tuple[str, dict[str, Any]]:
    """The next event's name and payload."""
    name, data, end = next(lines), next(lines), next(lines)
    assert end == ""
    return name.removeprefix("event: "), json.loads(data.removeprefix("data: "))


def until(lines: Iterator[str], kind: str) -> list[dict[str, Any]]:
    """The changes up to the first of `kind`."""
    seen: list[dict[str, Any]] = []
    while not seen or seen[-1]["kind"] != kind:
        name, body = read(lines)
        assert name == "change"
        seen.append(body)
    return seen


def test_the_state_and_then_every_change(server: Running, client: httpx2.Client) -> None:
    client.post("/admin/models/org/scribe/load").raise_for_status()
    with client.stream("GET", "/admin/events") as response, server.client() as other:
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        lines = response.iter_lines()
        name, state = read(lines)
        assert name == "state"
        assert {**state, "uptime_seconds": 0}.keys() == other.get("/admin/status").json().keys()
        assert [(model["id"], model["state"]) for model in state["models"]] == [("org/scribe", "ready")]
        other.post("/admin/models/atlas/load").raise_for_status()
        changes = until(lines, "grant")
        assert {change["model"] for change in changes} == {"atlas"}
        assert [change["kind"] for change in changes if change["kind"].startswith("load")] == ["load", "loaded"]
        assert changes[-1]["status"]["state"] == "ready"
        assert changes[-1]["status"]["bytes"]["measured"] == 1
        other.post("/admin/models/atlas/unload").raise_for_status()
        assert until(lines, "gone")[-1]["model"] == "atlas"


def test_a_changes_status_is_the_one_after_it(server: Running, client: httpx2.Client) -> None:
    with client.stream("GET", "/admin/events") as response, server.client() as other:
        lines = response.iter_lines()
        read(lines)
        other.post("/admin/models/atlas/load").raise_for_status()
        assert until(lines, "loaded")[-1]["status"]["state"] == "ready"
        other.post("/admin/models/atlas/unload").raise_for_status()
        assert until(lines, "gone")[-1]["status"]["state"] == "unloaded"


def test_a_reload_is_a_change_without_folders(server: Running, client: httpx2.Client) -> None:
    server.outcome = Reload(0.0, ok=False, error="/fake/etc/roster.yaml:3: models: no")
    with client.stream("GET", "/admin/events") as response, server.client() as other:
        lines = response.iter_lines()
        read(lines)
        other.post("/admin/reload")
        name, change = read(lines)
        assert (name, change["kind"], change["model"]) == ("change", "reload", None)
        assert change["fields"]["error"] == "roster.yaml:3: models: no"


def test_the_stream_ends_with_the_server() -> None:
    with running() as server, server.client() as client, client.stream("GET", "/admin/events") as response:
        lines = response.iter_lines()
        assert read(lines)[0] == "state"
        server.uvicorn.should_exit = True
        # Not cut: the stream comes to its proper end.
        assert list(lines) == []


def test_who_does_not_read_does_not_hold_up_the_end() -> None:
    # The grace is longer than the harness waits for the server's end.
    with socket.socket() as sock, running(grace=2 * TIMEOUT) as server:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.settimeout(TIMEOUT)
        sock.connect(("127.0.0.1", server.port))
        sock.sendall(b"GET /admin/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"event: state" in read_until(sock, b"event: state")
        [connection] = server.uvicorn.server_state.connections

        async def fill() -> None:
            while not connection.flow.write_paused:  # type: ignore[union-attr]
                server.registry.pin("atlas", pinned=True)
                await asyncio.sleep(0)

        server.call(fill())


def test_a_listener_that_leaves_is_noticed(
    server: Running, client: httpx2.Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "mlx_roster.server.boundary")
    with client.stream("GET", "/admin/events") as response:
        assert read(response.iter_lines())[0] == "state"
    client.close()
    server.until(lambda: any("GET /admin/events 499 " in record.getMessage() for record in caplog.records))


def test_head_has_no_body_and_an_end(shared: httpx2.Client) -> None:
    assert shared.head("/admin/events").status_code == 200


Say = Callable[[bytes], Awaitable[None]]


async def listen(registry: Registry, closing: asyncio.Event, say: Say, pulse: float = 60.0) -> None:
    """Follow the events until `closing` is set; `say` is handed what would go on the wire."""

    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Message) -> None:
        await say(message.get("body", b""))

    scope = {"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": []}
    await Boundary(Events(registry, closing, pulse))(scope, receive, send)


def test_silence_is_filled_with_comments() -> None:
    async def main() -> None:
        async with Registry(Roster.model_validate(ROSTER), FakeWorkers(), FakeSources(), 10) as registry:
            closing, said = asyncio.Event(), list[bytes]()

            async def say(body: bytes) -> None:
                said.append(body)
                if said.count(b": still here\n\n") == 3:
                    closing.set()

            await listen(registry, closing, say, pulse=0.001)
            assert said[1].startswith(b"event: state\ndata: {")
            assert said[-1] == b""

    asyncio.run(main())


def test_who_reads_too_slowly_is_given_the_state_again() -> None:
    async def main() -> None:
        async with Registry(Roster.model_validate(ROSTER), FakeWorkers(), FakeSources(), 10) as registry:
            closing, said = asyncio.Event(), list[bytes]()
            stuck, reading = asyncio.Event(), asyncio.Event()

            async def say(body: bytes) -> None:
                said.append(body)
                stuck.set()
                await reading.wait()
                if body.startswith(b"event: state") and b'"pinned":true' in body:
                    closing.set()

            listening = asyncio.ensure_future(listen(registry, closing, say))
            await stuck.wait()
            for _ in range(5000):
                registry.pin("atlas", pinned=True)
            reading.set()
            await listening
            assert sum(body.startswith(b"event: state") for body in said) <= 2
            assert len(said) < 2000

    asyncio.run(main())
