"""What is refused before it is a request is logged and counted all the same: once, as what its client was told."""

from __future__ import annotations

import json
import logging
import re
from contextlib import closing

import pytest

from mlx_roster.logs import fields_of
from mlx_roster.server.protocol import MAX_HEAD
from tests.server.harness import Running, post, read_until, running
from tests.server.talking import CHAT, GET, SHORT, everything

CHUNKED = post("/v1/chat/completions", b"").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
HALF = json.dumps(CHAT).encode()[:20]

Ends = dict[tuple[str, str], float]


def scraped(server: Running) -> tuple[Ends, dict[str, float]]:
    """Requests by operation and status, and the gauges that have no labels."""
    with server.client() as client:
        text = client.get("/metrics").text
    series = re.compile(r'^mlx_roster_requests_total{.*operation="(\w+)",status="(\d+)"} (\S+)$', re.MULTILINE)
    gauges = re.findall(r"^mlx_roster_(\w+) (\S+)$", text, re.MULTILINE)
    ended = {(operation, status): float(count) for operation, status, count in series.findall(text)}
    return ended, {name: float(value) for name, value in gauges}


def told(server: Running, *pieces: bytes) -> tuple[int, str]:
    """The status of the answer, and its request id."""
    with closing(server.connect()) as sock:
        for piece in pieces:
            sock.sendall(piece)
        answer = everything(sock)
    found = re.search(rb"\r\nx-request-id: (\S+)", answer)
    assert found is not None
    return int(answer.split(b" ", 2)[1]), found[1].decode()


@pytest.mark.parametrize(
    ("pieces", "status", "operation"),
    [
        ([b"hello\r\n\r\n"], 400, "other"),
        ([GET + b"a: " + b"b" * 10 * MAX_HEAD], 431, "other"),
        ([GET], 408, "other"),
        # The application has the request already, and would say that the client has left.
        ([CHUNKED + b"%x\r\n%b\r\n" % (len(HALF), HALF), b"no size\r\n"], 400, "chat"),
        ([CHUNKED + b"no size\r\n"], 400, "chat"),
    ],
    ids=["no request", "headers", "late", "in the body", "at once"],
)
def test_a_refusal_is_counted_and_logged_once(
    pieces: list[bytes], status: int, operation: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "mlx_roster")
    with running(server={"header_timeout": SHORT}) as server:
        answered, request_id = told(server, *pieces)
        assert answered == status
        server.until(lambda: not server.uvicorn.server_state.tasks)
        assert scraped(server)[0] == {(operation, str(status)): 1}
    lines = [fields_of(record) for record in caplog.records if fields_of(record).get("event") == "request"]
    assert [(line["status"], line["request_id"]) for line in lines if line.get("path") != "/metrics"] == [
        (status, request_id)
    ]


def test_connections_and_tasks_are_told(server: Running) -> None:
    _, before = scraped(server)
    server.workers.hold("token atlas")
    with closing(server.connect()) as idle, closing(server.connect()) as busy:
        idle.sendall(GET + b"\r\n")
        read_until(idle, b"}}")
        busy.sendall(post("/v1/chat/completions", json.dumps(CHAT).encode()))
        server.seen("submit atlas")
        _, during = scraped(server)
        assert during["http_connections"] == before["http_connections"] + 2
        assert during["event_loop_tasks"] > before["event_loop_tasks"]
    server.seen("cancel atlas")
    server.until(lambda: not server.uvicorn.server_state.connections)
    _, after = scraped(server)
    assert after["http_connections"] == before["http_connections"] == 1
