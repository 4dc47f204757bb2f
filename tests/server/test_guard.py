"""Attacks on the admin routes from a browser on the same machine, or through a proxy on it, one by one."""

from __future__ import annotations

import httpx2
import pytest

from mlx_roster.server.guard import is_loopback
from tests.server.harness import Running, assert_error, read_until

ROUTES = [("GET", "/admin/status"), ("GET", "/admin/events"), ("POST", "/admin/models/atlas/load"), ("GET", "/admin/x")]


@pytest.mark.parametrize(("method", "path"), ROUTES)
@pytest.mark.parametrize(
    "headers",
    [
        {"host": "rebound.example"},
        {"host": "rebound.example", "origin": "http://rebound.example"},
        {"origin": "https://elsewhere.example"},
        {"origin": "null"},
        {"origin": "http://localhost:3000"},
        {"origin": "http://127.0.0.1"},
        {"origin": ""},
    ],
    ids=["rebinding", "rebinding, same origin", "form", "sandboxed page", "another port", "no port", "empty"],
)
def test_a_page_in_a_browser_is_refused(
    server: Running, client: httpx2.Client, method: str, path: str, headers: dict[str, str]
) -> None:
    assert_error(client.request(method, path, headers=headers), 403, "admin_required")
    assert server.workers.history == []


@pytest.mark.parametrize(("method", "path"), ROUTES)
@pytest.mark.parametrize(
    "header",
    [
        ("Forwarded", "for=203.0.113.7"),
        ("X-Forwarded-For", "127.0.0.1"),
        ("X-Forwarded-Host", "localhost"),
        ("x-forwarded-proto", "http"),
        ("X-Real-IP", ""),
        ("Via", "1.1 proxy"),
    ],
)
def test_what_a_proxy_passes_on_is_refused(
    server: Running, client: httpx2.Client, method: str, path: str, header: tuple[str, str]
) -> None:
    told = assert_error(client.request(method, path, headers=dict([header])), 403, "admin_required")
    assert told == "admin routes do not answer through a proxy"
    assert server.workers.history == []
    assert client.get("/v1/models", headers=dict([header])).status_code == 200


def test_a_proxy_that_says_nothing_of_itself_speaks_an_old_language(server: Running) -> None:
    with server.connect() as sock:
        sock.sendall(b"GET /admin/status HTTP/1.0\r\nHost: 127.0.0.1:8080\r\nConnection: close\r\n\r\n")
        assert b"do not answer through a proxy" in read_until(sock, b"}}")


@pytest.mark.parametrize("name", ["localhost", "LocalHost", "127.0.0.1", "127.1.2.3", "[::1]"])
@pytest.mark.parametrize("scheme", ["http", "https", None])
def test_this_machine_is_served(shared: httpx2.Client, name: str, scheme: str | None) -> None:
    headers = {"host": f"{name}:8080"} | ({"origin": f"{scheme}://{name}:8080"} if scheme else {})
    assert shared.get("/admin/status", headers=headers).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "",
        ":8080",
        "localhost.evil.example",
        "evil.example:8080",
        "127.0.0.1.evil.example",
        "127.0.0.1@evil.example",
        "127.0.0.1:80@evil.example",
        "127.1",
        "0.0.0.0",
        "10.0.0.1",
        "2130706433",
        "[::1]evil.example",
        "[::1",
        "::1",
        "[::]",
        "[fe80::1]",
        "localhost:",
        "localhost:8080:8080",
        "localhost\N{CYRILLIC SMALL LETTER A}",
    ],
)
def test_what_only_looks_like_loopback(host: str) -> None:
    assert is_loopback(host) == (host == "localhost:")


@pytest.mark.parametrize("second", ["Host: evil.example", "Origin: http://evil.example"])
def test_a_second_header_does_not_hide_behind_the_first(server: Running, second: str) -> None:
    own = f"127.0.0.1:{server.port}"
    with server.connect() as sock:
        lines = ["GET /admin/status HTTP/1.1", f"Host: {own}", f"Origin: http://{own}", second, "Connection: close"]
        sock.sendall("\r\n".join(lines).encode() + b"\r\n\r\n")
        assert b'"code":"admin_required"' in read_until(sock, b"}}")


def test_a_request_without_a_host_is_refused(server: Running) -> None:
    with server.connect() as sock:
        sock.sendall(b"GET /admin/status HTTP/1.0\r\n\r\n")
        assert b'"code":"admin_required"' in read_until(sock, b"}}")


@pytest.mark.parametrize("host", ["host.docker.internal:8080", "HOST.docker.internal"])
def test_who_asks_by_a_wrong_name_is_told_how_to_make_it_a_right_one(shared: httpx2.Client, host: str) -> None:
    message = assert_error(shared.get("/v1/models", headers={"host": host}), 403, "host_not_allowed")
    assert "server.hosts" in message
    assert message.endswith(": hosts: [host.docker.internal] would add this one")


@pytest.mark.parametrize("host", ["evil@localhost", "a" * 64, "a b", "x" + ".x" * 100, "[::2]", "\xe4"])
def test_what_is_no_name_is_not_said_back(shared: httpx2.Client, host: str) -> None:
    message = assert_error(shared.get("/v1/models", headers={"host": host.encode("latin-1")}), 403, "host_not_allowed")
    assert message.endswith("server.hosts in its roster has")
