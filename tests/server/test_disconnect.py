"""A client that leaves stops what it asked for; nothing else does."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import struct
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import suppress

import pytest
from starlette.types import Message

from mlx_roster.server.disconnect import cancel_on_disconnect
from tests.server.harness import Running, post, read_until, running

ATLAS = {"model": "atlas", "prompt": "hi"}
SCRIBE = {"model": "org/scribe", "prompt": "hi"}


def ask(server: Running, body: Mapping[str, object], *headers: str) -> socket.socket:
    sock = server.connect()
    sock.sendall(post("/v1/completions", json.dumps(body).encode(), *headers))
    return sock


def reset(sock: socket.socket) -> None:
    """Leave as a crashed client does."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


@pytest.fixture
def access(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[str]]]:
    """The access lines so far."""
    caplog.set_level(logging.INFO, "mlx_roster.server.boundary")
    yield lambda: [record.getMessage() for record in caplog.records if record.name == "mlx_roster.server.boundary"]
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("leave", [socket.socket.close, reset], ids=["close", "reset"])
@pytest.mark.parametrize("stream", [False, True])
def test_leaving_before_the_first_token(
    server: Running, access: Callable[[], list[str]], stream: bool, leave: Callable[[socket.socket], None]
) -> None:
    server.workers.hold("token atlas")
    sock = ask(server, {**ATLAS, "stream": stream})
    server.seen("submit atlas")
    leave(sock)
    server.seen("cancel atlas")
    server.idle()
    server.until(lambda: len(access()) == 1)
    assert access()[0].startswith("POST /v1/completions 499 ")


@pytest.mark.parametrize("stream", [False, True])
def test_who_stays_to_the_end_is_logged_as_served(
    server: Running, access: Callable[[], list[str]], stream: bool
) -> None:
    with server.client() as client:
        for _ in range(5):
            assert client.post("/v1/completions", json={**ATLAS, "stream": stream}).status_code == 200
    server.until(lambda: len(access()) == 5)
    assert all(line.startswith("POST /v1/completions 200 ") for line in access())


def test_leaving_in_the_middle_of_a_stream(server: Running, access: Callable[[], list[str]]) -> None:
    server.pieces = lambda _: ["x"] * 10**6
    with ask(server, {**ATLAS, "stream": True}) as sock:
        assert b'"x"' in read_until(sock, b'"x"')
    server.seen("cancel atlas")
    server.idle()
    server.until(lambda: len(access()) == 1)
    assert access()[0].startswith("POST /v1/completions 499 ")


def test_leaving_while_choices_are_collected(server: Running) -> None:
    server.workers.hold("token atlas")
    with ask(server, {**ATLAS, "prompt": ["a", "b", "c"]}):
        server.seen("submit atlas", 3)
    server.seen("cancel atlas", 3)


def test_leaving_while_the_model_loads(server: Running) -> None:
    server.workers.hold("load atlas")
    with ask(server, ATLAS):
        server.seen("load atlas")
    server.seen("cancel load atlas")
    assert "submit atlas" not in server.workers.history


def test_leaving_the_load_to_another_who_waits_for_it(server: Running) -> None:
    server.workers.hold("load atlas")
    with ask(server, ATLAS) as patient:
        with ask(server, ATLAS):
            server.until(lambda: server.registry.model_status("atlas").queued == 2)
        server.until(lambda: server.registry.model_status("atlas").queued == 1)
        server.open("load atlas")
        assert b"Hello there!" in read_until(patient, b"}}}")
    assert server.workers.history.count("submit atlas") == 1


def test_leaving_the_queue_starts_no_load() -> None:
    with running(budget=1) as server:
        server.workers.hold("token atlas")
        with ask(server, {**ATLAS, "stream": True}) as holder:
            server.seen("submit atlas")
            with ask(server, SCRIBE):
                server.until(lambda: server.registry.model_status("org/scribe").queued == 1)
            server.until(lambda: server.registry.model_status("org/scribe").queued == 0)
            server.open("token atlas")
            assert b"[DONE]" in read_until(holder, b"[DONE]\n\n")
        server.idle()
        assert server.workers.history == ["load atlas", "submit atlas"]


def test_leaving_before_the_body_is_whole(server: Running, access: Callable[[], list[str]]) -> None:
    request = post("/v1/completions", json.dumps(ATLAS).encode())
    with server.connect() as sock:
        sock.sendall(request[:-5])
    server.until(lambda: len(access()) == 1)
    assert access()[0].startswith("POST /v1/completions 499 ")
    assert server.workers.history == []


@pytest.mark.parametrize("stream", [False, True])
def test_a_connection_is_used_again(server: Running, stream: bool) -> None:
    request = post("/v1/completions", json.dumps({**ATLAS, "stream": stream}).encode())
    with server.connect() as sock:
        for _ in range(5):
            sock.sendall(request)
            read_until(sock, b"0\r\n\r\n" if stream else b"}}}")
    server.idle()
    assert server.workers.history == ["load atlas", *["submit atlas"] * 5]


@pytest.mark.parametrize("stream", [False, True])
def test_requests_that_come_before_the_last_answer_are_answered_in_turn(server: Running, stream: bool) -> None:
    requests = [
        post("/v1/completions", json.dumps({**ATLAS, "stream": stream}).encode(), f"X-Request-Id: number-{number}")
        for number in range(3)
    ]
    with server.connect() as sock:
        sock.sendall(b"".join(requests))
        # The last of them says that it is the last: then the server closes.
        sock.sendall(post("/v1/completions", json.dumps(ATLAS).encode(), "Connection: close"))
        received = read_until(sock, b"never")
    places = [received.index(b"number-%d" % number) for number in range(3)]
    assert places == sorted(places)
    assert received.count(b" 200 OK") == 4
    server.idle()
    assert server.workers.history == ["load atlas", *["submit atlas"] * 4]


class Client:
    """The `receive` of a client that leaves when told to."""

    def __init__(self) -> None:
        self.left = asyncio.Event()

    async def receive(self) -> Message:
        await self.left.wait()
        return {"type": "http.disconnect"}


def in_a_task(body: Callable[[Client, asyncio.Task[None]], Awaitable[None]]) -> asyncio.Task[None]:
    """Run `body` with a Client and its own task, and return the task when it has ended."""

    async def main() -> asyncio.Task[None]:
        async def run() -> None:
            task = asyncio.current_task()
            assert task is not None
            await body(Client(), task)

        task: asyncio.Task[None] = asyncio.create_task(run())
        with suppress(asyncio.CancelledError):
            await task
        assert asyncio.all_tasks() <= {asyncio.current_task()}, "the watcher lives on"
        return task

    return asyncio.run(main())


def test_only_the_watchers_own_cancellation_is_swallowed() -> None:
    async def body(client: Client, task: asyncio.Task[None]) -> None:
        async with cancel_on_disconnect(client.receive) as watch:
            client.left.set()
            await asyncio.Event().wait()
        assert watch.gone
        assert not task.cancelling()
        # The task is as good as new.
        await asyncio.sleep(0)

    assert not in_a_task(body).cancelled()


def test_a_cancellation_from_elsewhere_goes_through() -> None:
    async def body(client: Client, task: asyncio.Task[None]) -> None:
        async with cancel_on_disconnect(client.receive):
            asyncio.get_running_loop().call_soon(task.cancel)
            await asyncio.Event().wait()

    assert in_a_task(body).cancelled()


@pytest.mark.parametrize("first", ["disconnect", "shutdown"])
def test_a_cancellation_from_elsewhere_goes_through_beside_a_disconnect(first: str) -> None:
    async def body(client: Client, task: asyncio.Task[None]) -> None:
        async with cancel_on_disconnect(client.receive):
            both: list[Callable[[], object]] = [client.left.set, task.cancel]
            for act in both if first == "disconnect" else reversed(both):
                asyncio.get_running_loop().call_soon(act)
            try:
                await asyncio.Event().wait()
            finally:
                # Long enough for the second to arrive as well.
                with suppress(asyncio.CancelledError):
                    await asyncio.sleep(0)
                    await asyncio.sleep(0)

    assert in_a_task(body).cancelled()


def test_a_body_that_is_through_is_not_cancelled_late() -> None:
    async def body(client: Client, task: asyncio.Task[None]) -> None:
        async with cancel_on_disconnect(client.receive) as watch:
            await asyncio.sleep(0)
            client.left.set()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not watch.gone
        assert not task.cancelling()

    assert not in_a_task(body).cancelled()


def test_an_error_of_the_body_is_not_hidden_by_a_disconnect() -> None:
    async def body(client: Client, task: asyncio.Task[None]) -> None:
        async def fail() -> None:
            async with cancel_on_disconnect(client.receive):
                client.left.set()
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError as error:
                    raise ZeroDivisionError from error

        with pytest.raises(ZeroDivisionError):
            await fail()
        assert not task.cancelling()

    assert not in_a_task(body).cancelled()
