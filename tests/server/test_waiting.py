"""A stream that has nothing to say yet, over a real socket: it says so, and what fails later is an event."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from mlx_roster.core import Generation
from mlx_roster.errors import LoadFailed
from tests.server.harness import Running, assert_error_object, post, read_until, running

STREAM = post(
    "/v1/chat/completions", b'{"model": "atlas", "stream": true, "messages": [{"role": "user", "content": "hi"}]}'
)


class Lazily(Sequence[str]):
    """A script of so many pieces, each made when it is its turn."""

    def __init__(self, pieces: Iterator[str], length: int) -> None:
        self._pieces = pieces
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: Any) -> Any:
        try:
            return next(self._pieces)
        except StopIteration as end:
            raise IndexError(index) from end


def loading(server: Running, done: int) -> None:
    """The load of atlas gets further."""

    async def progress() -> None:
        (holding,) = server.registry._performer._holdings.values()
        holding.on_progress(done, 100)

    server.call(progress())


def test_a_stream_that_waits_for_a_load_says_how_far_it_is() -> None:
    with running(pulse=0.02) as server, server.connect() as sock:
        server.workers.hold("load atlas")
        sock.sendall(STREAM)
        server.seen("load atlas")
        assert read_until(sock, b": loading").startswith(b"HTTP/1.1 200 OK")
        loading(server, 43)
        read_until(sock, b": loading 43%")
        server.open("load atlas")
        answer = read_until(sock, b"data: [DONE]")
        assert b'"content":"Hello"' in answer
        assert answer.count(b"data: [DONE]") == 1


def test_a_stream_that_computes_nothing_to_be_seen_says_that_it_works() -> None:
    with running(pulse=0.02) as server, server.connect() as sock:
        server.workers.hold("token atlas")
        sock.sendall(STREAM)
        read_until(sock, b": working")
        server.open("token atlas")
        assert b'"finish_reason":"stop"' in read_until(sock, b"data: [DONE]")


def test_a_stream_that_falls_silent_in_between_says_that_it_works() -> None:
    with running(pulse=0.02) as server, server.connect() as sock:

        def script(_: Generation) -> Iterator[str]:
            yield "one"
            # What comes next takes its time, as a tool call that is generated whole does.
            server.workers.hold("token atlas")
            yield "two"

        server.pieces = lambda generation: Lazily(script(generation), 2)
        sock.sendall(STREAM)
        begun = read_until(sock, b": working")
        assert begun.index(b'"content":"one"') < begun.index(b": working")
        read_until(sock, b": working")
        server.open("token atlas")
        answer = read_until(sock, b"data: [DONE]")
        assert b'"content":"two"' in answer


def test_what_fails_after_that_is_an_event() -> None:
    with running(pulse=0.02) as server, server.connect() as sock:
        server.workers.hold("load atlas")
        server.workers.failures["atlas"] = [LoadFailed("atlas is broken")]
        sock.sendall(STREAM)
        read_until(sock, b": loading")
        server.open("load atlas")
        answer = read_until(sock, b"data: [DONE]").decode()
        (line,) = (line for line in answer.splitlines() if line.startswith("data: {"))
        assert assert_error_object(json.loads(line.removeprefix("data: "))["error"], "load_failed") == "atlas is broken"


def test_what_fails_before_has_a_status_of_its_own() -> None:
    with running(pulse=3600) as server, server.connect() as sock:
        server.workers.failures["atlas"] = [LoadFailed("atlas is broken")]
        sock.sendall(STREAM)
        assert read_until(sock, b"}}").startswith(b"HTTP/1.1 502 ")


def test_an_answer_in_one_piece_has_no_comments() -> None:
    with running(pulse=0.02) as server, server.connect() as sock:
        server.workers.hold("load atlas")
        sock.sendall(post("/v1/completions", b'{"model": "atlas", "prompt": "hi"}'))
        server.seen("load atlas")
        server.open("load atlas")
        answer = read_until(sock, b"}}}")
        assert b"content-type: application/json" in answer
        assert b": loading" not in answer
