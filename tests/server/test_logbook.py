"""The access line: each request's, in text and as fields, with nothing in it that a client could forge."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx2
import pytest

from mlx_roster.core import Delta, Usage
from mlx_roster.errors import ConfigError, InternalError, InvalidRequest, RosterError
from mlx_roster.logs import JsonLines, TextLines, fields_of
from mlx_roster.metrics import Account
from mlx_roster.server import logbook
from mlx_roster.server.exchange import Exchange
from tests.server.harness import Breaks, Running, read_until, running

DOCS = Path(__file__).parents[2] / "docs" / "logs.md"


def full() -> Exchange:
    """A request of which there is everything to say."""
    account = Account(
        started=10.0,
        ended=10.5,
        operation="chat",
        model="atlas",
        adapter="pirate",
        caller="alice",
        status=200,
        code="worker_crashed",
        stream=True,
        waited=0.25,
        loaded=0.125,
        first=10.375,
        prompt_tokens=31,
        completion_tokens=24,
        cached_tokens=16,
        reasoning_tokens=3,
        accepted_tokens=2,
        rejected_tokens=1,
        finishes=["stop", "length", "stop"],
    )
    return Exchange("one", account)


def scope(path: bytes = b"/v1/chat/completions") -> dict[str, Any]:
    return {"method": "POST", "path": path.decode("latin-1"), "raw_path": path, "client": ("192.0.2.7", 4711)}


def test_the_fields_are_those_of_the_docs() -> None:
    table = DOCS.read_text().partition("## Requests")[2].partition("## ")[0]
    documented = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    assert ["event", *documented] == list(logbook.facts(full(), scope()))


def test_what_every_line_has_is_in_the_docs() -> None:
    table = DOCS.read_text().partition("## Every line")[2].partition("## ")[0]
    record = logging.makeLogRecord(
        {"msg": "hi", "exc_info": (ValueError, ValueError(), None), "fields": {"event": "x"}}
    )
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == list(json.loads(JsonLines().format(record)))


def test_the_values() -> None:
    assert logbook.facts(full(), scope()) == {
        "event": "request",
        "request_id": "one",
        "method": "POST",
        "path": "/v1/chat/completions",
        "status": 200,
        "code": "worker_crashed",
        "model": "atlas",
        "adapter": "pirate",
        "caller": "alice",
        "client": "192.0.2.7",
        "stream": True,
        "ms": 500.0,
        "wait_ms": 250.0,
        "load_ms": 125.0,
        "ttft_ms": 375.0,
        "prompt_tokens": 31,
        "cached_tokens": 16,
        "completion_tokens": 24,
        "reasoning_tokens": 3,
        "accepted_tokens": 2,
        "rejected_tokens": 1,
        "finish": "stop,length",
    }
    line = logbook.line(logbook.facts(full(), scope()))
    assert line == (
        "POST /v1/chat/completions 200 worker_crashed    500 ms atlas:pirate wait=250ms load=125ms ttft=375ms "
        "tokens=31+24 cached=16 finish=stop,length stream caller=alice id=one"
    )


def test_what_does_not_apply_is_left_out() -> None:
    exchange = Exchange("a b", Account(started=1.0, ended=1.002, status=404, code="not_found"))
    about = logbook.facts(exchange, {"method": "GET", "path": "/x", "raw_path": b"/x", "client": None})
    assert about.keys() == {"event", "request_id", "method", "path", "status", "code", "ms"}
    assert logbook.line(about).split() == ["GET", "/x", "404", "not_found", "2", "ms", "-", 'id="a', 'b"']


def test_of_a_cut_request_the_prompt_is_not_known() -> None:
    account = Account(started=1.0, ended=2.0, operation="chat", status=499, waited=0.0, completion_tokens=5)
    about = logbook.facts(Exchange("one", account), scope())
    assert "prompt_tokens" not in about
    assert "cached_tokens" not in about
    assert "tokens=?+5" in logbook.line(about)


@pytest.mark.parametrize("path", [b"/\x9b2J", b"/a b", b"/\xff\x85", b"/" + b"x" * 10_000, b"/\x1b[2J\n"])
def test_a_path_is_printable_and_not_without_end(path: bytes) -> None:
    about = logbook.facts(Exchange("one", Account(started=1.0, ended=1.0)), scope(path))
    assert re.fullmatch(r"[\x21-\x7e]{1,800}", about["path"])
    assert " /" in logbook.line(about)


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Callable[[], list[logging.LogRecord]]:
    """The access records so far."""
    caplog.set_level(logging.DEBUG, "mlx_roster.server.boundary")
    return lambda: [record for record in caplog.records if fields_of(record).get("event") == "request"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_served_request(
    server: Running, client: httpx2.Client, lines: Callable[[], list[logging.LogRecord]], stream: bool
) -> None:
    server.pieces = lambda _: ["a", Delta(0, "b", "length", Usage(7, 2, 3))]
    body = {"model": "captain", "prompt": "hi", "n": 2, "stream": stream}
    client.post("/v1/completions", json=body, headers={"x-request-id": "one"}).raise_for_status()
    server.until(lambda: len(lines()) == 1)
    (record,) = lines()
    about = json.loads(JsonLines().format(record))
    expected = {
        "event": "request",
        "request_id": "one",
        "model": "atlas",
        "adapter": "pirate",
        "status": 200,
        "stream": stream,
        "client": "127.0.0.1",
        "prompt_tokens": 7,
        "completion_tokens": 4,
        "cached_tokens": 3,
        "finish": "length",
        "level": "INFO",
    }
    assert about.items() >= expected.items()
    assert {"wait_ms", "load_ms", "ttft_ms", "ms"} <= about.keys()
    assert "code" not in about


def test_the_caller_is_named_by_its_key(lines: Callable[[], list[logging.LogRecord]]) -> None:
    keys = [{"name": "alice", "key": "a-key-of-alices-own"}]
    with running(auth={"keys": keys}) as server, server.client() as client:
        client.get("/v1/models", headers={"authorization": "Bearer a-key-of-alices-own"}).raise_for_status()
        client.get("/v1/models", headers={"authorization": "Bearer another-key-altogether"})
        server.until(lambda: len(lines()) == 2)
    first, second = (fields_of(record) for record in lines())
    assert (first["status"], first["caller"]) == (200, "alice")
    assert (second["status"], second["code"], "caller" in second) == (401, "invalid_api_key", False)
    assert not any("another-key" in TextLines().format(record) for record in lines())


def test_monitoring_does_not_flood_the_log(
    server: Running, client: httpx2.Client, lines: Callable[[], list[logging.LogRecord]]
) -> None:
    for path in ("/health", "/ready", "/metrics"):
        client.get(path).raise_for_status()
        client.post(path)
    server.until(lambda: len(lines()) == 6)
    levels = {(fields_of(one)["method"], fields_of(one)["path"]): one.levelno for one in lines()}
    assert levels == {
        (method, path): logging.DEBUG if method == "GET" else logging.INFO
        for path in ("/health", "/ready", "/metrics")
        for method in ("GET", "POST")
    }


FORGED = "POST /v1/completions 200      1 ms atlas id=mine"


@pytest.mark.parametrize(
    "request_line",
    [
        b"GET /v1/models/x%0A2026-03-01%20INFO%20forged HTTP/1.1\r\nHost: localhost\r\n\r\n",
        f"GET /x HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: {FORGED}\r\n\r\n".encode(),
        b"GET /x HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: \x1b[2J\r\n\r\n",
        b"GET /x HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: a\x9bb\r\n\r\n",
        b"GET /x?\x1b[2J HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ],
)
def test_no_client_forges_a_line(
    server: Running, lines: Callable[[], list[logging.LogRecord]], request_line: bytes
) -> None:
    with server.connect() as sock:
        sock.sendall(request_line)
        answer = read_until(sock, b"\r\n\r\n")
    if b" 400 " in answer.partition(b"\r\n")[0]:  # no HTTP at all
        return
    server.until(lambda: len(lines()) == 1)
    text = TextLines(stamped=False).format(lines()[0])
    assert text.isprintable()
    assert text.startswith("GET /")
    assert text.count(" id=") == (2 if FORGED in text else 1)
    assert FORGED not in text or f'id="{FORGED}"' in text
    assert JsonLines().format(lines()[0]).isprintable()


def secrets(word: str) -> dict[str, Any]:
    """A request with `word` in it wherever a text can be."""
    return {
        "messages": [
            {"role": "system", "content": f"{word}-system"},
            {"role": "user", "content": f"{word}-user", "name": f"{word}name"},
        ],
        "tools": [
            {
                "type": "function",
                "function": {
                    "name": f"{word}_tool",
                    "description": f"{word}-description",
                    "parameters": {"type": "object", "properties": {f"{word}-property": {"type": "string"}}},
                },
            }
        ],
        "stop": [f"{word}-stop"],
        "user": f"{word}-person",
        "metadata": {f"{word}-key": f"{word}-value"},
        "chat_template_kwargs": {f"{word}-variable": f"{word}-argument"},
        f"{word}_field": f"{word}-field",
    }


SECRET = "Xyzzy"
OTHERS: Sequence[dict[str, Any]] = [
    {"model": "atlas", **secrets(SECRET)},
    {"model": "atlas", **secrets(SECRET), "stream": True},
    {"model": f"{SECRET}-model", **secrets(SECRET)},
    {"model": "atlas", "adapters": f"{SECRET}-adapter", **secrets(SECRET)},
    {"model": "atlas", **secrets(SECRET), "temperature": f"{SECRET}-number"},
    {"model": "atlas", **secrets(SECRET), "messages": f"{SECRET}-messages"},
    {"model": "atlas", **secrets(SECRET), "messages": [{"role": f"{SECRET}-role", "content": "x"}]},
    {"model": "atlas", **secrets(SECRET), "tool_choice": {"type": "function", "function": {"name": SECRET}}},
    {"model": "atlas", **secrets(SECRET), "response_format": {"type": SECRET}},
    {"model": "atlas", **secrets(SECRET), "draft_model": SECRET},
    {"model": "atlas", **secrets(SECRET), "keep_alive": SECRET},
]


@pytest.mark.parametrize("body", OTHERS)
@pytest.mark.parametrize("error", [None, InvalidRequest(SECRET), InternalError(SECRET), ConfigError(SECRET)])
def test_nothing_of_a_request_or_its_answer_is_logged(
    shared_server: Running,
    shared: httpx2.Client,
    caplog: pytest.LogCaptureFixture,
    body: dict[str, Any],
    error: RosterError | None,
) -> None:
    caplog.set_level(logging.DEBUG)
    pieces = [f"{SECRET}-answer", f"{SECRET}-more"]
    shared_server.pieces = lambda _: pieces if error is None else Breaks(pieces, error)
    headers = {f"x-{SECRET}": SECRET, "user-agent": SECRET, "x-forwarded-for": SECRET, "cookie": SECRET}
    shared.post(f"/v1/chat/completions?{SECRET}={SECRET}", json=body, headers=headers)
    cut = f'{{"model": "{SECRET}'.encode()
    shared.post("/v1/chat/completions", content=cut, headers={"content-type": "application/json"})
    shared_server.until(lambda: sum(fields_of(one).get("event") == "request" for one in caplog.records) == 2)
    ours = [one for one in caplog.records if one.name.partition(".")[0] == "mlx_roster"]
    for one in ours:
        assert SECRET not in JsonLines().format(one)
        assert SECRET not in TextLines().format(one)
    # It is there to be found.
    assert all(SECRET in JsonLines(words=True).format(one) for one in ours if one.exc_info)


@pytest.mark.parametrize("stream", [False, True])
def test_prompts_and_answers_are_logged_where_that_is_asked_for(caplog: pytest.LogCaptureFixture, stream: bool) -> None:
    caplog.set_level(logging.INFO, "mlx_roster.server")
    with running(logs={"prompts": True}) as server, server.client() as client:
        server.pieces = lambda _: ["Hel", "lo"]
        body = {"model": "captain", "messages": [{"role": "user", "content": "x" * 20_000}], "n": 2, "stream": stream}
        client.post("/v1/chat/completions", json=body, headers={"x-request-id": "one"}).raise_for_status()
        server.until(lambda: any(fields_of(one).get("event") == "request" for one in caplog.records))
    (said,) = (one for one in caplog.records if fields_of(one).get("event") == "prompt")
    about = json.loads(JsonLines().format(said))
    assert (about["request_id"], about["model"], about["adapter"]) == ("one", "atlas", "pirate")
    assert about["asked"].startswith('[{"type": "chat", "messages": [{"role": "user", "content": "xxx')
    assert about["asked"].endswith("characters more")
    assert len(about["asked"]) < 10_100
    assert json.loads(about["answered"]) == [{"text": "Hello"}] * 2
    assert TextLines().format(said).count("\n") == 0


def test_what_is_answered_is_logged_as_far_as_it_came(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "mlx_roster.server")
    with running(logs={"prompts": True}) as server, server.client() as client:
        server.pieces = lambda _: Breaks(["Hel", "lo"], InternalError("no"))
        client.post("/v1/completions", json={"model": "atlas", "prompt": "hi", "stream": True})
        server.until(lambda: any(fields_of(one).get("event") == "request" for one in caplog.records))
    (said,) = (fields_of(one) for one in caplog.records if fields_of(one).get("event") == "prompt")
    assert json.loads(said["asked"]) == [{"type": "text", "text": "hi"}]
    assert json.loads(said["answered"]) == [{"text": "Hello"}]
