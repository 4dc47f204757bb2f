"""A server on a real socket over fake workers, and what its tests say to it."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import httpx2
import uvicorn
import uvloop

from mlx_roster.config import Roster
from mlx_roster.core import Delta, Generation
from mlx_roster.errors import tree
from mlx_roster.registry import Registry
from mlx_roster.registry.overview import Reload
from mlx_roster.server.app import Application, create_app
from mlx_roster.server.openai.waiting import PULSE
from mlx_roster.server.protocol import EdgeConfig
from mlx_roster.testing import FakeSources, FakeWorkers, hello

T = TypeVar("T")

#: Longer than anything here takes: only a hang meets it.
TIMEOUT = 20

ROSTER = {
    "defaults": {"top_p": 0.9},
    "models": {
        "atlas": {
            "source": "/fake/atlas",
            "aliases": ["gpt-4o"],
            "max_context": 2048,
            "defaults": {"temperature": 0.5, "max_tokens": 7},
            "adapters": {"pirate": {"source": "/fake/pirate", "aliases": ["captain"]}},
        },
        "org/scribe": {"source": "/fake/scribe"},
    },
}


class Breaks(Sequence[str]):
    """A script that says its pieces and then fails."""

    def __init__(self, pieces: Sequence[str], error: Exception) -> None:
        self.pieces = pieces
        self.error = error

    def __len__(self) -> int:
        return len(self.pieces) + 1

    def __getitem__(self, index: Any) -> Any:
        if index >= len(self.pieces):
            raise self.error
        return self.pieces[index]


class Stuck(Sequence[str]):
    """A script that says its pieces, and the last of them not before `hold`, which it calls, is taken back."""

    def __init__(self, pieces: Sequence[str], hold: Callable[[], object]) -> None:
        self.pieces = pieces
        self.hold = hold

    def __len__(self) -> int:
        return len(self.pieces)

    def __getitem__(self, index: Any) -> Any:
        if index == len(self.pieces) - 1:
            self.hold()
        return self.pieces[index]


class _Server(uvicorn.Server):
    """uvicorn, and what the assembly adds to it that matters here."""

    def __init__(self, app: Application, registry: Registry, grace: int) -> None:
        super().__init__(
            EdgeConfig(app, lambda: registry.roster.server, metrics=app.metrics, timeout_graceful_shutdown=grace)
        )
        self._app = app

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._app.close(self.server_state.connections)
        await super().shutdown(sockets)


class Running:
    """The server, from a test's thread. `workers.history` and `generations` say what reached the workers."""

    def __init__(self, roster: Roster, budget: int, grace: int, pulse: float = PULSE) -> None:
        self.roster = roster
        self._pulse = pulse
        self.generations: list[Generation] = []
        self.pieces: Callable[[Generation], Sequence[str | Delta]] = hello
        #: How the next reload goes, and who asked for the last ones.
        self.outcome = Reload(0.0, ok=True)
        self.reloads: list[str] = []
        self.workers = FakeWorkers(self._script)
        self._budget = budget
        self._grace = grace
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="server")

    def _script(self, generation: Generation) -> Sequence[str | Delta]:
        self.generations.append(generation)
        return self.pieces(generation)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        self.loop = asyncio.get_running_loop()
        async with Registry(self.roster, self.workers, FakeSources(), self._budget) as self.registry:
            app = create_app(self.registry, self._reload, pulse=self._pulse)
            self.uvicorn = _Server(app, self.registry, self._grace)
            self._ready.set()
            await self.uvicorn.serve(sockets=[self._socket])
            self.registry.validate()

    async def _reload(self, why: str) -> Reload:
        self.reloads.append(why)
        self.registry.reload_ended(self.outcome)
        return self.outcome

    def start(self) -> None:
        self._thread.start()
        assert self._ready.wait(TIMEOUT)

    def stop(self) -> None:
        self.uvicorn.should_exit = True
        self._thread.join(TIMEOUT)
        assert not self._thread.is_alive()

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run it on the server's loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(TIMEOUT)

    def seen(self, what: str, times: int = 1) -> None:
        """Wait until the workers have `what` in their history."""
        self.call(self.workers.seen(what, times))

    def open(self, what: str) -> None:
        """Open a gate of the workers."""

        async def set_gate() -> None:
            self.workers.gate(what).set()

        self.call(set_gate())

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait for `condition`, looked at from the server's loop."""

        async def look() -> bool:
            return condition()

        deadline = time.monotonic() + TIMEOUT
        while not self.call(look()):
            assert time.monotonic() < deadline, f"never came about: {self.registry!r}, {self.workers.history}"

    def idle(self) -> None:
        """Wait until nothing runs and nothing waits."""
        self.until(lambda: all(listing.in_flight == listing.queued == 0 for listing in self.registry.listing()))

    def client(self, **options: Any) -> httpx2.Client:
        return httpx2.Client(base_url=self.url, timeout=TIMEOUT, **options)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=TIMEOUT)


@contextmanager
def running(budget: int = 10, grace: int = TIMEOUT, pulse: float = PULSE, **changes: Any) -> Iterator[Running]:
    """A server over `ROSTER`, with `changes` to it. Every model takes one byte of the budget."""
    server = Running(Roster.model_validate({**ROSTER, **changes}), budget, grace, pulse)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def post(path: str, body: bytes, *headers: str) -> bytes:
    """A request's bytes, for a socket."""
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: localhost",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        *headers,
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def read_until(sock: socket.socket, end: bytes) -> bytes:
    """What arrives up to and including `end`, or until the server closes."""
    received = b""
    while end not in received and (chunk := sock.recv(65536)):
        received += chunk
    return received


def assert_error(response: httpx2.Response, status: int, code: str, param: str | None = None) -> str:
    """The one shape in which this server says no. Returns the message."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    assert response.json().keys() == {"error"}
    return assert_error_object(response.json()["error"], code, param)


def assert_error_object(error: dict[str, Any], code: str, param: str | None = None) -> str:
    assert error.keys() == {"message", "type", "param", "code"}
    assert (error["code"], error["param"]) == (code, param), error
    assert error["type"] in ("invalid_request_error", "rate_limit_error", "server_error")
    message = error["message"]
    assert isinstance(message, str)
    assert message
    assert len(message) < 1000
    assert "/fake/" not in message
    assert "Traceback" not in message
    assert not any(cls.__name__ in message for cls in (*tree(), ValueError, TypeError))
    return message
