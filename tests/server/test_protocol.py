"""The edge: what a client may send, how slowly, and how slowly it may read. Over sockets, byte for byte."""

from __future__ import annotations

import inspect
import json
import re
import socket
from contextlib import closing, suppress

import httptools
import pytest
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from mlx_roster.server.outgoing import Outgoing
from mlx_roster.server.protocol import MAX_AHEAD, MAX_HEAD, MAX_HEADERS
from tests.server.harness import Running, assert_error_object, post, read_until, running
from tests.server.talking import CHAT, GET, SHORT, everything, left, looked


def refusal(answer: bytes) -> tuple[int, str]:
    """Status and code of an answer that is one of our errors, and the last on its connection."""
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines[1:])
    assert headers["content-type"] == "application/json"
    assert headers["x-request-id"].startswith("req-")
    assert headers["connection"] == "close"
    assert int(headers["content-length"]) == len(body)
    error = json.loads(body)["error"]
    assert_error_object(error, error["code"])
    return int(lines[0].split()[1]), error["code"]


def told(server: Running, *pieces: bytes) -> bytes:
    """All that the server says to these bytes, until it closes."""
    with closing(server.connect()) as sock:
        for piece in pieces:
            sock.sendall(piece)
        return everything(sock)


def refusal_of_application(answer: bytes) -> tuple[int, str]:
    """The same, where the boundary gave it."""
    assert b"\r\nconnection: close\r\n" in answer
    error = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
    return status(answer), error["code"]


def dripped(sock: socket.socket, sent: bytes) -> bytes:
    """Send a byte at a time, each after a moment; what the server says in the end."""
    sock.settimeout(0.02)
    received = b""
    for byte in sent:
        with suppress(BrokenPipeError, ConnectionResetError):
            sock.send(bytes([byte]))
        try:
            chunk = sock.recv(65536)
        except TimeoutError:
            continue
        except ConnectionResetError:
            break
        if not chunk:
            break
        received += chunk
    else:
        raise AssertionError("it was never told to stop")
    return received


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


# What is relied on of uvicorn


def test_what_is_relied_on_of_uvicorn() -> None:
    methods = {
        "connection_made", "connection_lost", "data_received", "on_message_begin", "on_url", "on_header", "on_body",
        "on_headers_complete", "on_message_complete", "on_response_complete", "_start_asgi_task",
        "_unset_keepalive_if_required",
    }  # fmt: skip
    assert methods <= vars(HttpToolsProtocol).keys()
    made = inspect.getsource(HttpToolsProtocol.__init__)
    for name in ("pipeline", "cycle", "connections", "timeout_keep_alive", "parser", "flow", "transport", "headers"):
        assert f"self.{name}" in made
    assert list(inspect.signature(HttpToolsProtocol._start_asgi_task).parameters) == ["self", "cycle", "app"]
    used = inspect.getsource(RequestResponseCycle)
    for name in ("waiting_for_100_continue", "chunked_encoding", "expected_content_length", "more_body", "keep_alive"):
        assert f"self.{name}" in used


def test_a_cycle_asks_no_more_of_its_transport_than_there_is() -> None:
    asked = set(re.findall(r"self\.transport\.(\w+)", inspect.getsource(RequestResponseCycle)))
    assert asked <= {"write", "close", "is_closing"}
    assert asked <= vars(Outgoing).keys()


def test_what_a_callback_raises_comes_out_as_a_parser_error() -> None:
    class Callbacks:
        def on_header(self, name: bytes, value: bytes) -> None:
            raise ValueError

    with pytest.raises(httptools.HttpParserError):
        httptools.HttpRequestParser(Callbacks()).feed_data(GET + b"\r\n")


# Malformed and too large


@pytest.mark.parametrize(
    "sent",
    [
        b"hello\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
        b"FOO /health HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /health HTTP/3.7\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"CONNECT example.com:80 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET http://example.com HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /h\xc3\xa4lth HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -3\r\n\r\n",
        GET + b"no colon\r\n\r\n",
        GET + b"a: b\x00c\r\n\r\n",
    ],
)  # fmt: skip
def test_what_is_no_request_is_answered_in_our_shape(shared_server: Running, sent: bytes) -> None:
    assert refusal(told(shared_server, sent)) == (400, "invalid_request")


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /" + b"a" * MAX_HEAD + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /" + b"a" * 4 * MAX_HEAD,
        GET + b"a: " + b"b" * MAX_HEAD + b"\r\n\r\n",
        GET + b"a: " + b"b" * 10 * MAX_HEAD,
        GET + b"b" * 4 * MAX_HEAD,
        GET + b"a: b\r\n" * MAX_HEADERS + b"\r\n",
        GET + (b"a: " + b"b" * 1000 + b"\r\n") * 70 + b"\r\n",
    ],
    ids=["line", "half a line", "header", "half a header", "half a name", "count", "total"],
)
def test_headers_without_end_are_refused(shared_server: Running, sent: bytes) -> None:
    assert refusal(told(shared_server, sent)) == (431, "headers_too_large")


def test_as_many_headers_as_an_honest_client_sends_are_fine(shared_server: Running) -> None:
    headers = b"".join(b"a-%d: %s\r\n" % (number, b"b" * 500) for number in range(100))
    assert status(told(shared_server, GET + b"Connection: close\r\n" + headers + b"\r\n")) == 200


def test_trailers_are_no_headers_and_have_an_end(shared_server: Running) -> None:
    head = post("/v1/chat/completions", b"").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
    body = json.dumps({"model": "atlas", "messages": [{"role": "user", "content": "hi"}]}).encode()
    sent = head + b"%x\r\n%b\r\n0\r\n" % (len(body), body)
    with closing(shared_server.connect()) as sock:
        sock.sendall(sent + b"x-request-id: from-a-trailer\r\n\r\n")
        answer = read_until(sock, b"}}")
    assert status(answer) == 200
    assert b"from-a-trailer" not in answer
    assert refusal(told(shared_server, sent, b"a: " + b"b" * 10 * MAX_HEAD)) == (431, "headers_too_large")


def test_a_body_in_many_chunks_is_read(shared_server: Running) -> None:
    head = post("/v1/chat/completions", b"", "Connection: close")
    body = json.dumps({"model": "atlas", "messages": [{"role": "user", "content": "hi" * 200_000}]}).encode()
    pieces = [body[index : index + 10_000] for index in range(0, len(body), 10_000)]
    sent = head.replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
    sent += b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
    assert status(told(shared_server, sent)) == 200


def test_garbage_behind_a_request_cuts_what_it_runs_and_says_nothing(server: Running) -> None:
    server.workers.hold("token atlas")
    with closing(server.connect()) as sock:
        sock.sendall(post("/v1/chat/completions", json.dumps(CHAT).encode()))
        server.seen("submit atlas")
        sock.sendall(b"garbage\r\n\r\n")
        assert left(sock) == b""
    server.seen("cancel atlas")


# Ahead, and in other words


def test_requests_sent_ahead_are_answered_in_order(shared_server: Running) -> None:
    last = GET.replace(b"/health", b"/nowhere") + b"Connection: close\r\n\r\n"
    answer = told(shared_server, (GET + b"\r\n") * 3 + last)
    assert answer.count(b"HTTP/1.1 200 OK") == 3
    assert answer.rindex(b"HTTP/1.1 404") > answer.rindex(b"HTTP/1.1 200")


def test_no_more_than_so_many_requests_can_be_sent_ahead(server: Running) -> None:
    server.workers.hold("token atlas")
    with closing(server.connect()) as sock:
        sock.sendall(post("/v1/chat/completions", json.dumps(CHAT).encode()) + (GET + b"\r\n") * (MAX_AHEAD + 1))
        assert left(sock) == b""
    server.idle()


def test_leaving_with_a_request_sent_ahead_cancels_what_runs(server: Running) -> None:
    server.workers.hold("token atlas")
    with closing(server.connect()) as sock:
        sock.sendall(post("/v1/chat/completions", json.dumps(CHAT).encode()) + GET + b"\r\n")
        server.seen("submit atlas")
    server.seen("cancel atlas")


@pytest.mark.parametrize("more", [b"", b"Connection: keep-alive\r\n"])
def test_a_stream_over_an_older_http_has_no_chunks_and_ends_with_its_connection(
    shared_server: Running, more: bytes
) -> None:
    request = post("/v1/chat/completions", json.dumps({**CHAT, "stream": True}).encode())
    answer = told(shared_server, request.replace(b"HTTP/1.1\r\n", b"HTTP/1.0\r\n" + more))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"connection: close" in head
    assert b"transfer-encoding" not in head
    lines = [line for line in body.split(b"\n") if line]
    assert all(line.startswith(b"data: ") for line in lines)
    assert lines[-1] == b"data: [DONE]"


def test_a_whole_answer_over_http_1_0(shared_server: Running) -> None:
    answer = told(shared_server, GET.replace(b"1.1", b"1.0") + b"\r\n")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"content-length: %d" % len(body) in head
    assert json.loads(body)


def test_head_has_no_body(shared_server: Running) -> None:
    for version in (b"1.0", b"1.1"):
        request = GET.replace(b"GET", b"HEAD").replace(b"1.1", version) + b"Connection: close\r\n\r\n"
        answer = told(shared_server, request)
        assert status(answer) == 200
        assert answer.endswith(b"\r\n\r\n")


def test_a_target_with_scheme_and_host_is_its_path(shared_server: Running) -> None:
    request = GET.replace(b"/health", b"http://localhost/health") + b"Connection: close\r\n\r\n"
    assert status(told(shared_server, request)) == 200


def test_a_websocket_is_not_opened(shared_server: Running) -> None:
    asked = b"Upgrade: websocket\r\nSec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13\r\nConnection: Upgrade\r\n\r\n"
    request = GET.replace(b"/health", b"/v1/realtime") + asked
    answer = told(shared_server, request + GET + b"Connection: close\r\n\r\n")
    assert status(answer) == 404
    assert b'"code":"not_found"' in answer
    # The connection speaks HTTP/1.1 as before.
    assert b"HTTP/1.1 200" in answer


def test_a_client_that_would_rather_speak_http_2_is_served_all_the_same(shared_server: Running) -> None:
    upgrade = ["Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAEAAEAA"]
    with closing(shared_server.connect()) as sock:
        for _ in range(2):
            sock.sendall(post("/v1/chat/completions", json.dumps(CHAT).encode(), *upgrade))
            assert status(read_until(sock, b"}}")) == 200


def test_a_body_is_asked_for_only_where_it_is_read(shared_server: Running) -> None:
    body = json.dumps(CHAT).encode()
    with closing(shared_server.connect()) as sock:
        sock.sendall(post("/v1/chat/completions", body, "Expect: 100-continue").removesuffix(body))
        assert read_until(sock, b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(body)
        assert status(read_until(sock, b"}}")) == 200
    # What was to follow might be the body, or the next request.
    refused = post("/v1/chat/completions", body, "Expect: 100-continue").replace(b"json", b"xml").removesuffix(body)
    assert status(told(shared_server, refused)) == 415


# Too slow in sending


def test_headers_have_to_be_whole_in_time() -> None:
    with running(server={"header_timeout": SHORT}) as server:
        assert told(server) == b""
        assert refusal(told(server, b"GET / HT")) == (408, "request_timeout")
        assert told(server, b"\r\n" * 10) == b""


def test_dripping_headers_does_not_help() -> None:
    with running(server={"header_timeout": SHORT}) as server, closing(server.connect()) as sock:
        assert refusal(dripped(sock, GET + b"a: " + b"b" * 10_000)) == (408, "request_timeout")


def test_the_next_requests_headers_have_to_be_whole_in_time_too() -> None:
    with running(server={"header_timeout": SHORT}) as server, closing(server.connect()) as sock:
        for _ in range(3):
            sock.sendall(GET + b"\r\n")
            read_until(sock, b"}}")
        sock.sendall(b"GET /hea")
        assert refusal(everything(sock)) == (408, "request_timeout")


def test_a_long_answer_is_no_reason_to_hurry_the_next_request() -> None:
    with running(server={"header_timeout": SHORT}) as server, closing(server.connect()) as sock:
        server.workers.hold("token atlas")
        sock.sendall(post("/v1/chat/completions", json.dumps(CHAT).encode()) + b"GET /heal")
        server.seen("submit atlas")
        looked(server, 20)
        server.open("token atlas")
        assert status(read_until(sock, b"}}")) == 200
        sock.sendall(b"th HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert status(read_until(sock, b"}}")) == 200


def test_a_connection_without_requests_is_closed() -> None:
    with running(server={"idle_timeout": SHORT}) as server, closing(server.connect()) as sock:
        sock.sendall(GET + b"\r\n")
        assert status(everything(sock)) == 200


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/admin/reload"])
def test_a_body_has_to_come(path: str) -> None:
    body = json.dumps(CHAT).encode()
    with running(server={"body_timeout": SHORT}) as server:
        assert refusal_of_application(told(server, post(path, body)[:-1])) == (408, "request_timeout")
        server.idle()


def test_dripping_a_body_does_not_help() -> None:
    with running(server={"body_timeout": SHORT}) as server, closing(server.connect()) as sock:
        sock.sendall(post("/v1/chat/completions", b" " * 10_000).removesuffix(b" " * 10_000))
        assert refusal_of_application(dripped(sock, b" " * 10_000)) == (408, "request_timeout")


def test_a_body_that_nobody_reads_does_not_keep_its_connection() -> None:
    with running(server={"header_timeout": SHORT}) as server, closing(server.connect()) as sock:
        sock.sendall(post("/nowhere", b" " * 10_000).removesuffix(b" " * 10_000))
        assert status(dripped(sock, b" " * 10_000)) == 404


# Too many


def test_connections_beyond_the_limit_are_told_to_come_back(server: Running) -> None:
    server.uvicorn.config.max_connections = 8
    held = [server.connect() for _ in range(8)]
    try:
        held[0].sendall(GET + b"\r\n")
        assert status(read_until(held[0], b"}}")) == 200
        answer = told(server)
        assert refusal(answer) == (503, "too_many_connections")
        assert b"retry-after: 5" in answer
        # Those that were there are served on, and who leaves makes room.
        held[0].sendall(GET + b"\r\n")
        assert status(read_until(held[0], b"}}")) == 200
        held.pop().close()
        server.until(lambda: len(server.uvicorn.server_state.connections) < 8)
        assert status(told(server, GET + b"Connection: close\r\n\r\n")) == 200
    finally:
        for sock in held:
            sock.close()
