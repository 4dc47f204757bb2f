"""Request ids, the access log, bugs, and what a cut at shutdown looks like."""

from __future__ import annotations

import asyncio
import json
import logging
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mlx_roster.config import Roster
from mlx_roster.core import Ref
from mlx_roster.errors import ConfigError, ModelNotFound
from mlx_roster.registry import Lease, Registry
from mlx_roster.registry.overview import Reload
from mlx_roster.server.app import create_app
from mlx_roster.server.boundary import Boundary
from mlx_roster.server.exchange import Exchange
from mlx_roster.testing import FakeSources, FakeWorkers
from tests.server.harness import ROSTER, Running, assert_error_object, post, read_until, running


@pytest.mark.parametrize("sent", ["a", "req 7/8", "x" * 512, "~!@#$%^&*()"])
def test_a_clients_own_request_id_is_kept(shared: httpx2.Client, sent: str) -> None:
    for path in ("/health", "/v1/nope"):
        assert shared.get(path, headers={"x-request-id": sent}).headers["x-request-id"] == sent


@pytest.mark.parametrize("sent", [b"", b"x" * 513, b"\xff", "é".encode(), b"a\tb"])
def test_any_other_request_id_is_replaced(shared: httpx2.Client, sent: bytes) -> None:
    ids = {shared.get("/health", headers={b"x-request-id": sent}).headers["x-request-id"] for _ in range(2)}
    assert len(ids) == 2
    assert all(made.startswith("req-") for made in ids)


def test_one_access_line_for_each_request(
    server: Running, client: httpx2.Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "mlx_roster.server.boundary")
    client.post("/v1/completions", json={"model": "gpt-4o", "prompt": "hi"}, headers={"x-request-id": "one"})
    client.get("/v1/models/a%0Ab", headers={"x-request-id": "two"})

    def lines() -> list[list[str]]:
        return [r.getMessage().split() for r in caplog.records if r.name == "mlx_roster.server.boundary"]

    server.until(lambda: len(lines()) == 2)
    served, refused = lines()
    assert served[:3] == ["POST", "/v1/completions", "200"]
    assert served[4:6] == ["ms", "atlas"]
    assert [word.partition("=")[0] for word in served[6:9]] == ["wait", "load", "ttft"]
    assert served[9:] == ["tokens=1+3", "finish=stop", "id=one"]
    assert refused[:4] == ["GET", "/v1/models/a%0Ab", "404", "not_found"]
    assert refused[5:] == ["ms", "-", "id=two"]


async def talk(app: ASGIApp, scope: Scope, body: bytes = b"") -> list[Message]:
    """One request without a socket: what the application sends."""
    incoming = asyncio.Queue[Message]()
    incoming.put_nowait({"type": "http.request", "body": body, "more_body": False})
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    await app(scope, incoming.get, send)
    return sent


def http(path: str = "/", method: str = "GET") -> Scope:
    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    return {
        "type": "http",
        "http_version": "1.1",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": headers,
    }


def failing(error: BaseException, *before: Message, streaming: bool = False) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        Exchange.of(scope).streaming = streaming
        for message in before:
            await send(message)
        raise error

    return Boundary(app)


START: Message = {"type": "http.response.start", "status": 200, "headers": []}
PART: Message = {"type": "http.response.body", "body": b"data: {}\n\n", "more_body": True}
WHOLE: Message = {"type": "http.response.body", "body": b"{}", "more_body": False}


@pytest.mark.parametrize("error", [ZeroDivisionError("/secret"), ConfigError("/secret/roster.yaml:3: models: no")])
def test_a_bug_is_a_500_that_shows_nothing_and_is_logged(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    start, body = asyncio.run(talk(failing(error), http()))
    assert start["status"] == 500
    headers = dict(start["headers"])
    assert headers[b"content-type"] == b"application/json"
    message = assert_error_object(json.loads(body["body"])["error"], "internal_error")
    assert headers[b"x-request-id"].decode() in message
    assert "secret" not in message
    [record] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert headers[b"x-request-id"].decode() in record.getMessage()
    assert record.exc_info
    assert record.exc_info[1] is error


def test_a_bug_inside_a_stream_is_an_event() -> None:
    app = failing(ZeroDivisionError(), {**START}, PART, streaming=True)
    *_, last = asyncio.run(talk(app, http()))
    failed, done, rest = last["body"].decode().split("\n\n")
    assert_error_object(json.loads(failed.removeprefix("data: "))["error"], "internal_error")
    assert (done, rest, last["more_body"]) == ("data: [DONE]", "", False)


@pytest.mark.parametrize("error", [ZeroDivisionError(), ModelNotFound("x")])
def test_nothing_is_added_to_a_response_that_is_complete_or_half_out(error: Exception) -> None:
    assert asyncio.run(talk(failing(error, {**START}, WHOLE, streaming=True), http()))[1:] == [WHOLE]
    assert asyncio.run(talk(failing(error, {**START}, PART), http()))[1:] == [PART]


@pytest.mark.parametrize("streaming", [False, True])
def test_what_shutdown_cuts_short_says_so(streaming: bool) -> None:
    sent: list[Message] = []

    async def main() -> None:
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            if streaming:
                Exchange.of(scope).streaming = True
                await send({**START})
                await send(PART)
            started.set()
            await asyncio.Event().wait()

        async def send(message: Message) -> None:
            sent.append(message)

        started = asyncio.Event()
        task = asyncio.ensure_future(Boundary(app)(http(), asyncio.Queue[Message]().get, send))
        await started.wait()
        task.cancel()
        await task

    asyncio.run(main())
    assert sent[0]["status"] == (200 if streaming else 503)
    said = sent[-1]["body"].decode().removeprefix("data: ").split("\n\n")[0]
    assert_error_object(json.loads(said)["error"], "draining")


def test_a_stream_that_shutdown_cuts_ends_with_an_error() -> None:
    with running(grace=0) as server, server.connect() as sock:
        server.pieces = lambda _: ["x"] * 10**7
        sock.sendall(post("/v1/completions", b'{"model": "atlas", "prompt": "hi", "stream": true}'))
        assert b'"x"' in sock.recv(65536)
        server.uvicorn.should_exit = True
        received = read_until(sock, b"[DONE]")
    assert b'"code":"draining"' in received


async def never(why: str) -> Reload:
    raise AssertionError(why)


class Recording(Registry):
    """Writes down when a lease begins and ends."""

    def __init__(self, *args: Any, log: list[str]) -> None:
        super().__init__(*args)
        self._log = log

    @asynccontextmanager
    async def lease(self, ref: Ref, keep_alive: float | None = None, **options: Any) -> Any:
        async with super().lease(ref, keep_alive, **options) as lease:
            assert isinstance(lease, Lease)
            self._log.append("acquire")
            yield lease
        self._log.append("release")


@pytest.mark.parametrize(
    ("stream", "order"),
    [
        (False, ["acquire", "http.response.start", "http.response.body", "release"]),
        (True, ["acquire", "http.response.start", *["http.response.body"] * 4, "release"]),
    ],
)
def test_the_lease_encloses_the_whole_response(stream: bool, order: list[str]) -> None:
    log: list[str] = []

    async def main() -> None:
        roster = Roster.model_validate(ROSTER)
        async with Recording(roster, FakeWorkers(), FakeSources(), 10, log=log) as registry:
            app = create_app(registry, never)

            async def noting(scope: Scope, receive: Receive, send: Send) -> None:
                async def noted(message: Message) -> None:
                    log.append(message["type"])
                    await send(message)

                await app(scope, receive, noted)

            body = json.dumps({"model": "atlas", "prompt": "hi", "stream": stream}).encode()
            await talk(noting, http("/v1/completions", "POST"), body)

    asyncio.run(main())
    assert log == order
