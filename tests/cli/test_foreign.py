"""`mlx-roster chat` with servers that are not ours: it works where they speak OpenAI's API, or else says so."""

from __future__ import annotations

import http.server
import json
from typing import Any

import pytest

from tests.cli.elsewhere import answering
from tests.cli.terminal import at_terminal
from tests.cli.test_chat import chat

#: What they say of a route or a model that they do not have.
MISSING: dict[str, tuple[int, Any]] = {
    "detail": (404, {"detail": "Not Found"}),
    "code is null": (404, {"error": {"message": "no such model", "type": "api_error", "param": None, "code": None}}),
    "code is a number": (404, {"error": {"code": 404, "message": "File Not Found", "type": "not_found_error"}}),
    "only words": (200, {"error": "Unexpected endpoint"}),
    "a page": (404, None),
}

PAGE = b"<html>"


class _Other(http.server.BaseHTTPRequestHandler):
    """Lists two models, has no route for one of them, and streams without usage."""

    missing: tuple[int, Any]

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            self._send(200, {"object": "list", "data": [{"id": "one"}, {"id": "two:8b", "object": "model"}]})
        else:
            self._send(*self.missing)

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if asked.get("model") not in ("one", "two:8b"):
            self._send(*self.missing)
            return
        chunks = [{"choices": [{"delta": {"content": text}, "finish_reason": None}]} for text in ("Hel", "lo")]
        chunks += [{"choices": [{"delta": {}, "finish_reason": "stop"}], "usage": None}]
        self._send(200, "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks), "text/event-stream")

    def _send(self, status: int, body: Any, kind: str = "application/json") -> None:
        text = body.encode() if isinstance(body, str) else PAGE if body is None else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "text/html" if body is None else kind)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize("missing", MISSING.values(), ids=MISSING.keys())
def test_another_server_is_talked_to(missing: tuple[int, Any]) -> None:
    with answering(type("Other", (_Other,), {"missing": missing})) as url:
        done = chat(url, "one", "-p", "Hi")
        assert (done.returncode, done.stdout, done.stderr) == (0, "Hello\n", "")
        with at_terminal("chat", "one", "--url", url) as terminal:
            terminal.until("one> ")
            terminal.say("/model three")
            terminal.until("lists no model three")
            terminal.say("/model two:8b")
            terminal.until("two:8b> ")
            terminal.say("Hi")
            terminal.until("Hello")
            terminal.until("two:8b> ")


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("detail", "Not Found"),
        ("code is null", "no such model"),
        ("code is a number", "File Not Found"),
        ("only words", "Unexpected endpoint"),
    ],
)
def test_what_another_server_refuses_is_said_in_its_words(missing: str, words: str) -> None:
    with answering(type("Other", (_Other,), {"missing": MISSING[missing]})) as url:
        done = chat(url, "three", "-p", "Hi")
        assert (done.returncode, done.stdout, done.stderr) == (1, "", f"{words}\n")


class _Listing(http.server.SimpleHTTPRequestHandler):
    """Not a server of models at all: `python -m http.server`."""

    def log_message(self, *_: object) -> None:
        pass


def test_who_does_not_speak_the_api_is_not_called_nobody() -> None:
    with answering(_Listing) as url:
        said = f"what answers at {url}/v1 does not speak OpenAI's API; --url says where a server is"
        done = chat(url, "-p", "Hi")
        assert (done.returncode, done.stdout, done.stderr) == (2, "", f"{said}\n")
        with at_terminal("chat", "one", "--url", url, COLUMNS="200") as terminal:
            terminal.until("does not speak OpenAI's API")
            assert terminal.end() == 2


def test_a_key_that_no_header_can_have_is_called_so() -> None:
    with answering(_Listing) as url:
        done = chat(url, "-p", "Hi", MLX_ROSTER_KEY="ключ")
    assert (done.returncode, done.stderr) == (2, "--key, or MLX_ROSTER_KEY: an API key is printable ASCII\n")
