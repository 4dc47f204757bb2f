"""By which names a server may be asked, and by which web pages: as browsers do it, and as attackers make them do it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from mlx_roster.config import Roster
from mlx_roster.errors import InternalError
from mlx_roster.testing import hello
from tests.server.harness import ROSTER, Breaks, Running, assert_error, read_until, running

KEY = "page-key-0123456789"
AUTH = {"keys": [{"name": "page", "key": KEY, "scopes": ["infer", "admin"]}]}
APP, OTHER = "https://app.example.com", "https://elsewhere.example"
TEXT = {"model": "atlas", "prompt": "hi"}
ROUTES = ["/v1/chat/completions", "/chat/completions", "/v1/completions", "/v1/models", "/health", "/metrics", "/nope"]


@pytest.fixture(scope="module")
def serving() -> Iterator[Running]:
    """Without keys, and with pages that may use it."""
    with running(server={"cors_origins": [f"{APP}:443", "http://localhost:3000", "app://obsidian.md"]}) as server:
        yield server
        server.idle()


@pytest.fixture(scope="module")
def client(serving: Running) -> Iterator[httpx2.Client]:
    with serving.client() as client:
        yield client


@pytest.fixture(scope="module")
def keyed() -> Iterator[httpx2.Client]:
    server = {"cors_origins": [APP], "hosts": ["llm.example.com"]}
    with running(server=server, auth=AUTH) as running_server, running_server.client() as client:
        yield client
        running_server.idle()


def preflight(client: httpx2.Client, path: str, origin: str, **headers: str) -> httpx2.Response:
    asked = {"origin": origin, "access-control-request-method": "POST"}
    return client.options(path, headers={**asked, **headers})


def cors(response: httpx2.Response) -> dict[str, str]:
    return {name: value for name, value in response.headers.items() if name.startswith("access-control-")}


# Pages that may


@pytest.mark.parametrize("origin", [APP, "http://localhost:3000", "app://obsidian.md"])
@pytest.mark.parametrize("path", ROUTES)
def test_a_page_that_may_is_told_so(client: httpx2.Client, path: str, origin: str) -> None:
    response = preflight(client, path, origin)
    assert (response.status_code, response.content) == (204, b"")
    found = cors(response)
    assert found["access-control-allow-origin"] == origin
    assert set(found["access-control-allow-methods"].split(", ")) == {"GET", "HEAD", "POST", "OPTIONS"}
    assert {"authorization", "content-type", "x-request-id"} <= set(found["access-control-allow-headers"].split(", "))
    assert int(found["access-control-max-age"]) > 0
    assert response.headers["vary"] == "origin"
    # No cookie is ever looked at, so none is to be sent.
    assert "access-control-allow-credentials" not in found


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ("authorization,content-type,x-stainless-os,x-stainless-retry-count", True),
        ("X-Custom", True),
        ("a b", False),
        ("<script>", False),
        ("a," * 3000 + "a", False),
        ("", False),
    ],
)
def test_a_page_may_send_the_headers_that_its_client_sends(client: httpx2.Client, asked: str, told: bool) -> None:
    response = preflight(client, "/v1/models", APP, **{"access-control-request-headers": asked})
    allowed = cors(response)["access-control-allow-headers"]
    assert allowed == (asked if told else "authorization, content-type, x-request-id")


@pytest.mark.parametrize("keys", [False, True])
def test_its_answers_are_readable_errors_and_streams_too(
    client: httpx2.Client, keyed: httpx2.Client, serving: Running, keys: bool
) -> None:
    client = keyed if keys else client
    headers = {"origin": APP, **({"authorization": f"Bearer {KEY}"} if keys else {})}
    answers = [
        client.get("/v1/models", headers=headers),
        client.post("/v1/completions", json=TEXT, headers=headers),
        client.post("/v1/completions", json={**TEXT, "stream": True}, headers=headers),
        client.post("/v1/completions", json={**TEXT, "model": "x"}, headers=headers),
        client.post("/v1/completions", content=b"", headers=headers),
        client.put("/v1/models", headers=headers),
        client.get("/nope", headers=headers),
        client.options("/v1/models", headers=headers),
        client.get("/v1/models", headers={"origin": APP, "authorization": "Bearer wrong"}),
    ]
    assert [each.status_code for each in answers] == [200, 200, 200, 404, 415, 405, 404, 204, 401 if keys else 200]
    for response in answers:
        found = cors(response)
        assert found["access-control-allow-origin"] == APP
        exposed = found["access-control-expose-headers"].split(", ")
        assert {"x-request-id", "x-roster-wait-ms", "x-roster-load-ms", "x-roster-ignored", "retry-after"} <= {*exposed}
        assert response.headers["vary"] == "origin"


def test_an_error_of_the_server_is_readable_too(serving: Running, client: httpx2.Client) -> None:
    serving.pieces = lambda _: Breaks([], InternalError("it failed"))
    response = client.post("/v1/completions", json=TEXT, headers={"origin": APP})
    serving.pieces = hello
    assert_error(response, 500, "internal_error")
    assert cors(response)["access-control-allow-origin"] == APP


@pytest.mark.parametrize("keys", [False, True])
def test_any_page_may_where_that_is_written(keys: bool) -> None:
    auth = AUTH if keys else {"keys": []}
    with running(server={"cors_origins": ["*"]}, auth=auth) as server, server.client() as client:
        for origin in (APP, OTHER, "null", "app://x"):
            assert preflight(client, "/v1/completions", origin).status_code == 204
            headers = {"origin": origin, "authorization": f"Bearer {KEY}"}
            response = client.post("/v1/completions", json=TEXT, headers=headers)
            assert (response.status_code, cors(response)["access-control-allow-origin"]) == (200, "*")
            assert "vary" not in response.headers
            refusal = client.post("/admin/models/atlas/unload", headers=headers)
            assert_error(refusal, 403, "origin_not_allowed" if keys else "admin_required")
            assert cors(refusal) == {}


# Pages that may not


@pytest.mark.parametrize(
    "origin",
    [
        OTHER,
        "null",
        "",
        "https://app.example.com.evil.example",
        "https://evil-app.example.com",
        "https://app.example.com:8443",
        "http://app.example.com",
        "https://app.example.com/",
        "https://app_example.com",
        "http://localhost",
        "http://localhost:3001",
        "*",
        f"{APP} {OTHER}",
    ],
)
@pytest.mark.parametrize("keys", [False, True])
def test_a_page_that_may_not(
    serving: Running, client: httpx2.Client, keyed: httpx2.Client, origin: str, keys: bool
) -> None:
    client, before = keyed if keys else client, list(serving.workers.history)
    refusal = preflight(client, "/v1/completions", origin)
    assert_error(refusal, 403, "origin_not_allowed")
    assert cors(refusal) == {}
    headers = {"origin": origin, "authorization": f"Bearer {KEY}"}
    reading = client.get("/v1/models", headers=headers)
    assert (reading.status_code, cors(reading), reading.headers["vary"]) == (200, {}, "origin")
    for path in ("/v1/completions", "/chat/completions", "/nope"):
        doing = client.post(path, json=TEXT, headers=headers)
        if keys:
            # With a key it is no page that was only visited. What it is told, the browser keeps from it.
            assert doing.status_code != 403
        else:
            assert_error(doing, 403, "origin_not_allowed")
        assert cors(doing) == {}
    assert keys or serving.workers.history == before


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "[::1]"])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_its_own_pages_are_no_foreign_ones(client: httpx2.Client, name: str, scheme: str) -> None:
    headers = {"host": f"{name}:8080", "origin": f"{scheme}://{name}:8080"}
    assert client.post("/v1/completions", json=TEXT, headers=headers).status_code == 200
    other = {"host": f"{name}:8080", "origin": f"{scheme}://{name}:8081"}
    assert_error(client.post("/v1/completions", json=TEXT, headers=other), 403, "origin_not_allowed")


def test_two_origins_are_none_that_may(serving: Running) -> None:
    for first, second in ((APP, APP), (APP, OTHER), (OTHER, APP)):
        with serving.connect() as sock:
            lines = ["POST /v1/completions HTTP/1.1", "Host: localhost", f"Origin: {first}", f"Origin: {second}"]
            sock.sendall("\r\n".join([*lines, "Content-Length: 0", "Connection: close"]).encode() + b"\r\n\r\n")
            answer = read_until(sock, b"}}")
        assert b'"code":"origin_not_allowed"' in answer
        assert b"access-control-allow-origin" not in answer


@pytest.mark.parametrize(
    "path", ["/admin/status", "/admin/events", "/admin/models/atlas/load", "/admin/nope", "/admin"]
)
@pytest.mark.parametrize("origin", [APP, OTHER, "null"])
def test_admin_routes_are_for_no_page(keyed: httpx2.Client, path: str, origin: str) -> None:
    good = {"authorization": f"Bearer {KEY}"}
    for response in (
        preflight(keyed, path, origin),
        preflight(keyed, path, origin, **good),
        keyed.get(path, headers={"origin": origin, **good}),
        keyed.post(path, headers={"origin": origin, **good}),
    ):
        assert_error(response, 403, "origin_not_allowed")
        assert cors(response) == {}
    own = {"origin": "https://llm.example.com", "host": "llm.example.com", **good}
    assert keyed.get("/admin/status", headers=own).status_code == 200


def test_a_preflight_says_nothing_of_what_is_there(keyed: httpx2.Client) -> None:
    answers = [preflight(keyed, path, APP, **{"x-request-id": "same"}) for path in ROUTES]
    shown = [{name: value for name, value in each.headers.items() if name != "date"} for each in answers]
    assert shown == [shown[0]] * len(ROUTES)
    assert_error(keyed.options("/v1/models", headers={"origin": APP}), 401, "invalid_api_key")
    assert_error(keyed.options("/v1/models", headers={"access-control-request-method": "GET"}), 401, "invalid_api_key")


def test_origins_are_those_of_the_roster_as_it_is_now() -> None:
    with running() as server, server.client() as client:
        for origins, status in (([], 403), ([APP], 204), ([OTHER], 403), (["*"], 204)):

            async def apply(origins: list[str] = origins) -> None:
                changed: dict[str, Any] = {**ROSTER, "server": {"cors_origins": origins}}
                server.registry.reconfigure(Roster.model_validate(changed), 10)

            server.call(apply())
            assert preflight(client, "/v1/models", APP).status_code == status
            assert ("vary" in client.get("/v1/models").headers) == (origins not in ([], ["*"]))


# Names

EVERYWHERE = [
    *(("GET", path) for path in ("/v1/models", "/health", "/ready", "/metrics", "/openapi.json", "/nope", "/")),
    *(("POST", path) for path in ("/v1/completions", "/v1/chat/completions", "/chat/completions", "/health")),
    *(("OPTIONS", path) for path in ("/v1/models", "/nope")),
]


@pytest.mark.parametrize(("method", "path"), EVERYWHERE)
@pytest.mark.parametrize(
    "host", ["rebound.example", "rebound.example:8080", "", "127.0.0.1.nip.io", "10.0.0.1", "[::]"]
)
def test_a_name_that_was_made_to_point_here_is_refused(
    shared_server: Running, shared: httpx2.Client, keyed: httpx2.Client, method: str, path: str, host: str
) -> None:
    before = list(shared_server.workers.history)
    rebound = {"host": host, "origin": f"http://{host}"}
    assert_error(shared.request(method, path, headers=rebound), 403, "host_not_allowed")
    assert_error(shared.request(method, path, headers={"host": host}), 403, "host_not_allowed")
    # Before any key is looked at, and with a good one too.
    for headers in ({"host": host}, {"host": host, "authorization": f"Bearer {KEY}"}):
        assert_error(keyed.request(method, path, headers=headers), 403, "host_not_allowed")
    assert shared_server.workers.history == before


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:8080", "127.9.9.9", "[::1]", "[::1]:80"])
def test_loopback_names_are_this_machines(shared: httpx2.Client, host: str) -> None:
    assert shared.get("/v1/models", headers={"host": host}).status_code == 200


@pytest.mark.parametrize("host", ["llm.example.com", "LLM.example.com:443", "llm.example.com:8080"])
def test_names_of_the_roster_are_the_servers_too(keyed: httpx2.Client, host: str) -> None:
    headers = {"host": host, "authorization": f"Bearer {KEY}"}
    assert keyed.get("/v1/models", headers=headers).status_code == 200
    assert keyed.get("/admin/status", headers=headers).status_code == 200
    assert_error(keyed.get("/admin/status", headers={**headers, "host": f"x.{host}"}), 403, "host_not_allowed")


def test_a_name_of_the_roster_opens_no_admin_route_without_keys() -> None:
    with running(server={"hosts": ["llm.example.com"]}) as server, server.client() as client:
        named = {"host": "llm.example.com"}
        assert client.get("/v1/models", headers=named).status_code == 200
        assert client.post(
            "/v1/completions", json=TEXT, headers={**named, "origin": "https://llm.example.com"}
        ).is_success
        assert_error(client.get("/admin/status", headers=named), 403, "admin_required")


@pytest.mark.parametrize(
    "lines",
    [
        ["GET /v1/models HTTP/1.0"],
        ["GET /v1/models HTTP/1.0", "Host:"],
        ["GET /health HTTP/1.0"],
        ["GET /v1/models HTTP/1.1", "Host: localhost", "Host: localhost"],
        ["GET /v1/models HTTP/1.1", "Host: localhost", "Host: rebound.example"],
        ["GET /v1/models HTTP/1.1", "Host: rebound.example", "Host: localhost"],
        ["GET /v1/models HTTP/1.1", "Host: localhost, rebound.example"],
        ["GET http://rebound.example/v1/models HTTP/1.1", "Host: rebound.example"],
        ["GET /v1/models HTTP/1.1", "Host: rebound.example", "X-Forwarded-Host: localhost"],
    ],
    ids=str,
)
def test_there_is_one_name_and_it_is_a_good_one(shared_server: Running, lines: list[str]) -> None:
    with shared_server.connect() as sock:
        sock.sendall("\r\n".join([*lines, "Connection: close"]).encode() + b"\r\n\r\n")
        assert b'"code":"host_not_allowed"' in read_until(sock, b"}}")


def test_http_1_0_with_a_name_is_served(shared_server: Running) -> None:
    with shared_server.connect() as sock:
        sock.sendall(b"GET /v1/models HTTP/1.0\r\nHost: 127.0.0.1:8080\r\n\r\n")
        assert b"200 OK" in read_until(sock, b"]}")


def test_a_server_for_others_is_asked_by_any_name() -> None:
    with running(server={"host": "0.0.0.0"}, auth=AUTH) as server, server.client() as client:
        for host in ("mini.local:8080", "192.0.2.7", ""):
            assert client.get("/health", headers={"host": host}).status_code == 200
            assert_error(client.get("/v1/models", headers={"host": host}), 401, "invalid_api_key")
            good = {"host": host, "authorization": f"Bearer {KEY}"}
            assert client.get("/v1/models", headers=good).status_code == 200
            assert client.get("/admin/status", headers=good).status_code == 200
