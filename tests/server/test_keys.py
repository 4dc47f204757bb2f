"""Keys over real sockets: what is one, what each sees, how they change under way, and how many may wait."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest

from mlx_roster.config import Roster
from mlx_roster.errors import LoadFailed
from tests.server.harness import ROSTER, Running, assert_error, post, read_until, running
from tests.server.keys import GOOD, HASHED, KEYS, OPS, PIRATE, SCRIBE, bearer

TEXT = {"model": "atlas", "prompt": "hi"}


@pytest.fixture(scope="module")
def client(keyed: Running) -> Iterator[httpx2.Client]:
    with keyed.client() as client:
        yield client


# The header


@pytest.mark.parametrize(
    "headers",
    [
        [b"Authorization: " + GOOD.encode()],
        [b"Authorization:"],
        [b"Authorization: Bearer"],
        [b"Authorization: Bearer "],
        [b"Authorization: Bearer" + GOOD.encode()],
        [b"Authorization: Basic " + GOOD.encode()],
        [b"Authorization: Bearer " + GOOD.encode() + b" x"],
        [b"Authorization: Bearer " + GOOD.encode() + b", Bearer " + GOOD.encode()],
        [b"Authorization: Bearer x" + GOOD.encode()],
        [b"Authorization: Bearer " + GOOD.encode()[:-1]],
        [b"Authorization: Bearer " + GOOD.upper().encode()],
        [b"Authorization: Bearer " + GOOD.encode() + b"\xff"],
        [b"Authorization: Bearer \xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9"],
        [b"Authorization: Bearer " + hashlib.sha256(HASHED.encode()).hexdigest().encode()],
        [b"Authorization: Bearer " + b"x" * 30_000],
        [b"Authorization: " + b" " * 30_000 + b"x"],
        [b"Authorization: Bearer " + GOOD.encode()] * 2,
        [b"Authorization: Bearer nothing-0123456789", b"Authorization: Bearer " + GOOD.encode()],
        [b"X-API-Key: " + GOOD.encode()],
        [b"api-key: " + GOOD.encode()],
        [b"Cookie: key=" + GOOD.encode()],
    ],
    ids=lambda lines: repr(lines[0][:40]) + str(len(lines)),
)
def test_what_is_no_good_key(keyed: Running, headers: list[bytes]) -> None:
    with keyed.connect() as sock:
        lines = [
            b"GET /v1/models?key=" + GOOD.encode() + b" HTTP/1.1",
            b"Host: localhost",
            *headers,
            b"Connection: close",
        ]
        sock.sendall(b"\r\n".join(lines) + b"\r\n\r\n")
        answer = read_until(sock, b"}}")
    assert b" 401 " in answer.splitlines()[0]
    assert b'"code":"invalid_api_key"' in answer
    assert b"www-authenticate: Bearer" in answer


@pytest.mark.parametrize("said", [f"Bearer {GOOD}", f"bearer {GOOD}", f"BEARER   {GOOD}", f"Bearer {HASHED}"])
def test_what_is_a_good_key(client: httpx2.Client, said: str) -> None:
    assert client.get("/v1/models", headers={"authorization": said}).status_code == 200


def test_what_comes_with_a_key_from_a_proxy_changes_nothing(client: httpx2.Client) -> None:
    passed_on = {"x-forwarded-for": "127.0.0.1", "forwarded": "for=127.0.0.1", "x-real-ip": "127.0.0.1", "via": "1.1 p"}
    assert client.get("/admin/status", headers={**bearer(GOOD), **passed_on}).status_code == 200
    assert_error(client.get("/admin/status", headers=passed_on), 401, "invalid_api_key")


def test_who_has_no_key_sends_no_body(keyed: Running) -> None:
    with keyed.connect() as sock:
        lines = ["POST /v1/completions HTTP/1.1", "Host: localhost", "Content-Length: 99999", "Connection: close"]
        sock.sendall("\r\n".join(lines).encode() + b"\r\n\r\n")
        assert b" 401 " in read_until(sock, b"}}")


# What a key may see


def listed(client: httpx2.Client, key: str) -> list[str]:
    return [model["id"] for model in client.get("/v1/models", headers=bearer(key)).json()["data"]]


def test_each_key_sees_its_own(client: httpx2.Client) -> None:
    assert listed(client, GOOD) == listed(client, HASHED) == ["atlas", "atlas:pirate", "org/scribe"]
    assert listed(client, SCRIBE) == ["org/scribe"]
    assert listed(client, PIRATE) == ["atlas:pirate"]
    (entry,) = client.get("/v1/models", headers=bearer(PIRATE)).json()["data"]
    assert entry == client.get("/v1/models/captain", headers=bearer(PIRATE)).json()
    assert (entry["parent"], entry["roster"]["aliases"], entry["roster"]["adapters"]) == ("atlas", ["captain"], [])


@pytest.mark.parametrize(
    ("key", "model", "adapters"),
    [
        (PIRATE, "atlas", "pirate"),
        (PIRATE, "captain", None),
        (PIRATE, "atlas:pirate", None),
        (SCRIBE, "org/scribe", None),
    ],
)
def test_each_key_opens_its_own(client: httpx2.Client, key: str, model: str, adapters: str | None) -> None:
    request = {"model": model, "adapters": adapters, "prompt": "hi"}
    assert client.post("/v1/completions", json=request, headers=bearer(key)).status_code == 200


@pytest.mark.parametrize(
    ("key", "model", "adapters", "code"),
    [
        (SCRIBE, "atlsa", None, "model_not_found"),
        (SCRIBE, "gpt-4", None, "model_not_found"),
        (SCRIBE, "captian", None, "model_not_found"),
        (SCRIBE, "atlas:pirat", None, "model_not_allowed"),
        (SCRIBE, "gpt-4o", "pirate", "model_not_allowed"),
        (SCRIBE, "gpt-4o", "nothing", "model_not_allowed"),
        (SCRIBE, "captain", "nothing", "model_not_allowed"),
        (SCRIBE, None, None, "model_not_allowed"),
        (SCRIBE, None, "nothing", "model_not_allowed"),
        (PIRATE, "gpt-4o", None, "model_not_allowed"),
        (PIRATE, "gpt-4o", "french", "model_not_allowed"),
        (PIRATE, "captain", "french", "invalid_request"),
        (PIRATE, "atlas:french", "pirate", "model_not_allowed"),
        (PIRATE, "org/scrib", None, "model_not_found"),
        (PIRATE, "org/scribe:x", None, "model_not_allowed"),
    ],
)
def test_no_refusal_names_what_is_not_theirs(key: str, model: str | None, adapters: str | None, code: str) -> None:
    adapter = {"source": "/fake/french"}
    models: dict[str, Any] = {
        "atlas": {
            "source": "/fake/atlas",
            "aliases": ["gpt-4o"],
            "adapters": {"pirate": {"source": "/fake/pirate", "aliases": ["captain"]}, "french": adapter},
        },
        "org/scribe": {"source": "/fake/scribe"},
    }
    with running(auth={"keys": KEYS}, default_model="atlas", models=models) as server, server.client() as client:
        request = {"model": model, "adapters": adapters, "prompt": "hi"}
        response = client.post("/v1/completions", json=request, headers=bearer(key))
        said = response.json()["error"]["message"]
        assert response.json()["error"]["code"] == code
        own = {SCRIBE: ("org/scribe",), PIRATE: ("atlas:pirate", "atlas", "pirate", "captain")}[key]
        for name in ("atlas", "gpt-4o", "pirate", "captain", "french", "org/scribe"):
            asked = f"{model} {adapters}"
            assert name in asked or name in own or name not in said, said
        assert server.workers.history == []
        assert "atlas" not in str(response.headers)


def test_close_names_are_those_that_the_key_opens(client: httpx2.Client) -> None:
    request = {"model": "org/scrib", "prompt": "hi"}
    said = client.post("/v1/completions", json=request, headers=bearer(SCRIBE)).json()["error"]["message"]
    assert said == "no model 'org/scrib' in the roster; did you mean org/scribe?"
    said = client.post("/v1/completions", json={**request, "model": "atla"}, headers=bearer(SCRIBE)).json()
    assert said["error"]["message"] == "no model 'atla' in the roster; GET /v1/models lists those there are"


def test_what_is_unlisted_goes_by_the_same_globs() -> None:
    keys = [{"name": "a", "key": GOOD, "models": ["mlx-community/*"]}]
    unlisted = {"hub": ["*"], "paths": True}
    with running(auth={"keys": keys}, unlisted=unlisted) as server, server.client(headers=bearer(GOOD)) as client:
        assert client.post("/v1/completions", json={**TEXT, "model": "mlx-community/x"}).status_code == 200
        before = list(server.workers.history)
        for model in ("someone/else", "atlas"):
            response = client.post("/v1/completions", json={**TEXT, "model": model})
            assert_error(response, 403, "model_not_allowed", "model")
        assert client.get("/v1/models/mlx-community/x").json()["id"] == "mlx-community/x"
        assert_error(client.get("/v1/models/someone/else"), 403, "model_not_allowed", "model")
        assert client.get("/v1/models").json()["data"] == []
        assert server.workers.history == before


def test_a_pinned_model_in_the_way_is_not_named_to_who_must_not_know_it() -> None:
    models = {"atlas": {"source": "/fake/atlas", "pin": True}, "org/scribe": {"source": "/fake/scribe"}}
    with running(budget=1, auth={"keys": KEYS}, models=models) as server, server.client() as client:
        assert client.post("/admin/models/atlas/load", headers=bearer(OPS)).status_code == 200
        for key, named in ((GOOD, True), (SCRIBE, False)):
            response = client.post("/v1/completions", json={**TEXT, "model": "org/scribe"}, headers=bearer(key))
            said = assert_error(response, 507, "model_too_large", "model")
            assert ("atlas" in said) == named, said
        assert server.workers.history.count("load atlas") == 1


def test_models_that_were_waited_for_in_vain_are_not_named_to_who_must_not_know_them() -> None:
    scheduling = {"queue_timeout": "100ms"}
    with running(budget=1, auth={"keys": KEYS}, scheduling=scheduling) as server, server.client() as client:
        server.workers.hold("token atlas")
        with server.connect() as sock:
            sock.sendall(post("/v1/completions", json.dumps(TEXT).encode(), f"Authorization: Bearer {GOOD}"))
            server.seen("submit atlas")
            for key, named in ((GOOD, True), (SCRIBE, False)):
                response = client.post("/v1/completions", json={**TEXT, "model": "org/scribe"}, headers=bearer(key))
                said = assert_error(response, 503, "queue_timeout", "model")
                assert ("atlas" in said) == named, said
                assert int(response.headers["retry-after"]) >= 1
        server.seen("cancel atlas")


def test_health_names_models_to_operators_only() -> None:
    models = {"atlas": {"source": "/fake/atlas", "preload": True}}
    with running(auth={"keys": KEYS}, models=models) as server, server.client() as client:
        server.workers.failures["atlas"] = [LoadFailed("it is broken")]

        async def preload() -> None:
            server.registry.start_preloads()

        server.call(preload())
        server.until(lambda: server.registry.preloads.finished)
        for path in ("/health", "/ready"):
            assert client.get(path, headers=bearer(OPS)).json()["preload"]["failed"] == ["atlas"]
            for headers in ({}, bearer(SCRIBE), bearer("wrong-key-0123456789")):
                response = client.get(path, headers=headers)
                assert (response.status_code, response.json()["preload"]) == (200, {"done": 0, "of": 1})
                assert "atlas" not in response.text


# The roster changes


def rekey(server: Running, *keys: dict[str, Any], **changes: Any) -> None:
    async def apply() -> None:
        roster = Roster.model_validate({**ROSTER, "auth": {"keys": keys}, **changes})
        server.registry.reconfigure(roster, 10)

    server.call(apply())


def test_keys_are_those_of_the_roster_as_it_is_now() -> None:
    laptop, phone = {"name": "laptop", "key": GOOD}, {"name": "phone", "key": SCRIBE}
    with running() as server, server.client(headers=bearer(GOOD)) as client:
        assert client.get("/v1/models").status_code == 200
        rekey(server, phone)
        assert_error(client.get("/v1/models"), 401, "invalid_api_key")
        rekey(server, phone, laptop)
        assert client.get("/v1/models").status_code == 200
        assert_error(client.get("/metrics"), 403, "admin_required")
        rekey(server, {**laptop, "models": ["org/*"], "scopes": ["admin", "infer"]})
        assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["org/scribe"]
        assert client.get("/metrics").status_code == 200
        rekey(server, {**laptop, "scopes": ["admin"]})
        assert_error(client.get("/v1/models"), 403, "model_not_allowed")
        rekey(server)
        assert client.get("/v1/models", headers={"authorization": ""}).status_code == 200


def test_a_stream_outlives_its_key() -> None:
    with running(auth={"keys": KEYS}, pulse=0.05) as server, server.client(headers=bearer(GOOD)) as client:
        server.pieces = lambda _: ["one", "two"]
        server.workers.hold("token atlas")
        with client.stream("POST", "/v1/completions", json={**TEXT, "stream": True}) as response:
            lines = response.iter_lines()
            assert next(lines) == ": working"
            rekey(server, KEYS[3])
            with server.client(headers=bearer(GOOD)) as other:
                assert_error(other.get("/v1/models"), 401, "invalid_api_key")
            server.open("token atlas")
            rest = "".join(lines)
            assert "two" in rest
            assert rest.endswith("data: [DONE]")


def test_an_adapter_that_goes_while_it_is_waited_for_leaves_the_others_unnamed() -> None:
    french = {"atlas": {**ROSTER["models"]["atlas"], "adapters": {"french": {"source": "/fake/french"}}}}
    with running(auth={"keys": KEYS}) as server, server.client(headers=bearer(PIRATE)) as client:
        server.workers.hold("load atlas")
        with ThreadPoolExecutor() as pool:
            asked = pool.submit(client.post, "/v1/completions", json={**TEXT, "model": "atlas:pirate"})
            server.seen("load atlas")
            rekey(server, *KEYS, models=french)
            server.open("load atlas")
            said = assert_error(asked.result(), 404, "adapter_not_found", "adapters")
        assert said == "atlas:pirate is no longer there"


def test_a_server_for_others_that_knows_no_key_lets_nobody_in() -> None:
    """No reload comes so far: see the Reloader. If one did, it would open nothing."""
    with running(server={"host": "0.0.0.0"}, auth={"keys": KEYS}) as server, server.client() as client:
        rekey(server)
        for path in ("/v1/models", "/admin/status", "/openapi.json", "/metrics"):
            assert_error(client.get(path), 401, "invalid_api_key")
            assert_error(client.get(path, headers=bearer(GOOD)), 401, "invalid_api_key")


# Places in the queue


def test_one_key_cannot_take_every_place_in_the_queue() -> None:
    keys = [
        {"name": "greedy", "key": GOOD},
        {"name": "other", "key": SCRIBE},
        {"name": "none", "key": PIRATE, "max_queued": 0},
    ]
    with running(budget=1, auth={"keys": keys}, scheduling={"max_queued": 4}) as server:
        server.workers.hold("token atlas")
        with ThreadPoolExecutor() as pool, server.client() as client:

            def ask(key: str, model: str = "org/scribe") -> httpx2.Response:
                return client.post("/v1/completions", json={"model": model, "prompt": "hi"}, headers=bearer(key))

            running_now = pool.submit(ask, GOOD, "atlas")
            server.seen("submit atlas")
            waiting = [pool.submit(ask, GOOD) for _ in range(2)]
            server.until(lambda: server.registry.model_status("org/scribe").queued == 2)
            refusal = ask(GOOD)
            said = assert_error(refusal, 429, "queue_full", "model")
            assert said == "2 requests of this API key wait already, and no more than 2 of its may"
            assert int(refusal.headers["retry-after"]) >= 1
            assert "of this API key" in assert_error(ask(PIRATE), 429, "queue_full", "model")
            waiting.append(pool.submit(ask, SCRIBE))
            server.until(lambda: server.registry.model_status("org/scribe").queued == 3)
            server.open("token atlas")
            assert [each.result().status_code for each in (running_now, *waiting)] == [200] * 4
