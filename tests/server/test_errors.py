"""One table from error to status, and one shape on every route."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import httpx2
import pytest

from mlx_roster import errors
from mlx_roster.errors import ConfigError, RosterError
from mlx_roster.server.errors import ANSWERS, answer, headers
from mlx_roster.testing import hello
from tests.server.harness import Breaks, Running, assert_error, assert_error_object, post, read_until, running

CHAT = {"model": "atlas", "messages": [{"role": "user", "content": "hi"}]}
TEXT = {"model": "atlas", "prompt": "hi"}
JSON = {"content-type": "application/json"}


@pytest.mark.parametrize("cls", [cls for cls in errors.tree() if not cls.__subclasses__()])
def test_every_leaf_of_the_error_tree_has_an_answer(cls: type[RosterError]) -> None:
    # A ConfigError ends the start. If one ever met a request, its paths must not be shown.
    assert (cls in ANSWERS) == (cls is not ConfigError)


def test_codes_and_statuses_are_those_of_the_contract() -> None:
    found = {cls.code: row.status for cls, row in ANSWERS.items()}
    assert found == {
        "invalid_json": 400,
        "invalid_request": 400,
        "unsupported_parameter": 400,
        "unsupported_content": 400,
        "context_length_exceeded": 400,
        "model_required": 400,
        "invalid_config": 400,
        "invalid_api_key": 401,
        "admin_required": 403,
        "model_not_allowed": 403,
        "host_not_allowed": 403,
        "origin_not_allowed": 403,
        "not_found": 404,
        "model_not_found": 404,
        "adapter_not_found": 404,
        "method_not_allowed": 405,
        "request_timeout": 408,
        "request_too_large": 413,
        "unsupported_media_type": 415,
        "adapter_incompatible": 422,
        "headers_too_large": 431,
        "queue_full": 429,
        "internal_error": 500,
        "load_failed": 502,
        "worker_crashed": 502,
        "queue_timeout": 503,
        "load_cooldown": 503,
        "draining": 503,
        "too_many_connections": 503,
        "model_too_large": 507,
    }


def test_a_new_subclass_has_its_ancestors_answer() -> None:
    class Nearer(errors.ModelNotFound):
        pass

    assert answer(Nearer("x")) == ANSWERS[errors.ModelNotFound]
    assert answer(RosterError("x")) is None


class Failure(NamedTuple):
    """A request and what it must be refused with."""

    name: str
    send: Callable[[httpx2.Client], httpx2.Response]
    status: int
    code: str
    param: str | None = None


def on(path: str, body: object, **headers: str) -> Callable[[httpx2.Client], httpx2.Response]:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return lambda client: client.post(path, content=content, headers={**JSON, **headers})


def generating(path: str, good: dict[str, Any]) -> list[Failure]:
    """What can go wrong on either generating route."""
    cases = [
        ("not JSON", on(path, b"{"), 400, "invalid_json", None),
        ("empty", on(path, b""), 400, "invalid_json", None),
        ("not UTF-8", on(path, b'{"model": "\xff"}'), 400, "invalid_json", None),
        ("half a surrogate pair", on(path, b'{"model": "\\ud800"}'), 400, "invalid_json", None),
        ("too deep", on(path, b"[" * 100_000), 400, "invalid_json", None),
        ("NaN", on(path, b'{"temperature": NaN}'), 400, "invalid_json", None),
        ("not an object", on(path, []), 400, "invalid_request", None),
        ("no type", lambda client: client.post(path, content=b"{}"), 415, "unsupported_media_type", None),
        ("a form", lambda client: client.post(path, data={"a": "b"}), 415, "unsupported_media_type", None),
        ("gzip", on(path, b"{}", **{"content-encoding": "gzip"}), 415, "unsupported_media_type", None),
        ("too large", on(path, b" " * (8 * 2**20 + 1)), 413, "request_too_large", None),
        ("wrong type", on(path, {**good, "max_tokens": "5"}), 400, "invalid_request", "max_tokens"),
        ("near miss", on(path, {**good, "max_token": 5}), 400, "invalid_request", "max_token"),
        ("not served", on(path, {**good, "suffix": "x"}), 400, "unsupported_parameter", "suffix"),
        ("no model", on(path, {**good, "model": None}), 400, "model_required", "model"),
        ("unknown model", on(path, {**good, "model": "atlsa"}), 404, "model_not_found", "model"),
        ("a path for a model", on(path, {**good, "model": "/etc/passwd"}), 404, "model_not_found", "model"),
        ("unknown adapter", on(path, {**good, "adapters": "x"}), 404, "adapter_not_found", "adapters"),
        ("wrong method", lambda client: client.get(path), 405, "method_not_allowed", None),
    ]
    return [Failure(f"{path} {name}", *rest) for name, *rest in cases]  # type: ignore[arg-type]


def acting(path: str) -> list[Failure]:
    """What can go wrong on any admin route that does something."""
    cases = [
        ("text", lambda client: client.post(path, content=b"force"), 415, "unsupported_media_type", None),
        ("not JSON", on(path, b"{"), 400, "invalid_json", None),
        ("not an object", on(path, []), 400, "invalid_request", None),
        ("too large", on(path, b" " * 70_000), 413, "request_too_large", None),
        ("unknown field", on(path, {"forse": True}), 400, "invalid_request", "forse"),
        ("unknown flag", on(f"{path}?forse=true", b""), 400, "invalid_request", "forse"),
        ("another origin", on(path, b"", origin="http://localhost:3000"), 403, "admin_required", None),
        ("another name", on(path, b"", host="roster.example:80"), 403, "admin_required", None),
        ("DELETE", lambda client: client.delete(path), 405, "method_not_allowed", None),
    ]
    return [Failure(f"{path} {name}", *rest) for name, *rest in cases]  # type: ignore[arg-type]


ADMIN = [
    *(case for verb in ("load", "unload", "pin", "unpin") for case in acting(f"/admin/models/atlas/{verb}")),
    *acting("/admin/reload"),
    *(
        Failure(f"{verb} unknown", on(f"/admin/models/org/nope/{verb}", b""), 404, "model_not_found", "model")
        for verb in ("load", "unload", "pin", "unpin")
    ),
    Failure("force is no flag", on("/admin/models/atlas/unload", {"force": 1}), 400, "invalid_request", "force"),
    Failure("force in words", on("/admin/models/atlas/unload?force=yes", b""), 400, "invalid_request", "force"),
    Failure("load takes none", on("/admin/models/atlas/load", {"force": True}), 400, "invalid_request", "force"),
    Failure("unknown adapter", on("/admin/models/atlas:x/load", b""), 404, "adapter_not_found", "model"),
    Failure("unknown status", lambda client: client.get("/admin/models/nope"), 404, "model_not_found", "model"),
    Failure("unknown verb", on("/admin/models/atlas/explode", b""), 405, "method_not_allowed"),
    Failure("admin root", lambda client: client.get("/admin"), 404, "not_found"),
    Failure("admin nowhere", lambda client: client.get("/admin/nope"), 404, "not_found"),
    Failure("admin slash", lambda client: client.get("/admin/status/"), 404, "not_found"),
    Failure("POST status", on("/admin/status", b""), 405, "method_not_allowed"),
    Failure("POST events", on("/admin/events", b""), 405, "method_not_allowed"),
    Failure("GET reload", lambda client: client.get("/admin/reload"), 405, "method_not_allowed"),
]

FAILURES = [
    *generating("/v1/chat/completions", CHAT),
    *generating("/chat/completions", CHAT),
    *generating("/v1/completions", TEXT),
    Failure("unknown route", lambda client: client.get("/v1/nope"), 404, "not_found"),
    Failure("root", lambda client: client.get("/"), 404, "not_found"),
    Failure("trailing slash", on("/v1/completions/", TEXT), 404, "not_found"),
    Failure("POST models", on("/v1/models", {}), 405, "method_not_allowed"),
    Failure("DELETE model", lambda client: client.delete("/v1/models/atlas"), 405, "method_not_allowed"),
    Failure("POST health", on("/health", {}), 405, "method_not_allowed"),
    Failure("model", lambda client: client.get("/v1/models/nope"), 404, "model_not_found", "model"),
    Failure("adapter", lambda client: client.get("/v1/models/atlas:x"), 404, "adapter_not_found", "model"),
    Failure("no id", lambda client: client.get("/v1/models/"), 404, "model_not_found", "model"),
    Failure("POST ready", on("/ready", {}), 405, "method_not_allowed"),
    Failure("POST metrics", on("/metrics", {}), 405, "method_not_allowed"),
    *ADMIN,
]


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: failure.name)
def test_every_failure_has_the_one_shape(shared: httpx2.Client, failure: Failure) -> None:
    assert_error(failure.send(shared), failure.status, failure.code, failure.param)


@pytest.mark.parametrize("cls", ANSWERS)
@pytest.mark.parametrize("stream", [False, True])
def test_what_a_worker_refuses_has_a_status_of_its_own_streamed_or_not(
    shared_server: Running, shared: httpx2.Client, cls: type[RosterError], stream: bool
) -> None:
    shared_server.pieces = lambda _: Breaks([], cls("the reason", param="messages"))
    response = shared.post("/v1/chat/completions", json={**CHAT, "stream": stream})
    shared_server.pieces = hello
    assert assert_error(response, ANSWERS[cls].status, cls.code, "messages") == "the reason"
    assert response.headers["x-roster-wait-ms"].isdigit()
    assert ("retry-after" in response.headers) == issubclass(cls, errors.Busy)


@pytest.mark.parametrize("media_type", ["application/json", "Application/JSON; charset=utf-8"])
def test_json_is_json_with_or_without_parameters(shared: httpx2.Client, media_type: str) -> None:
    response = shared.post("/v1/completions", content=json.dumps(TEXT), headers={"content-type": media_type})
    assert response.is_success


def test_an_error_inside_a_stream_is_an_event_and_then_done(server: Running, client: httpx2.Client) -> None:
    server.pieces = lambda _: Breaks(["one"], errors.WorkerCrashed("the worker died"))
    response = client.post("/v1/chat/completions", json={**CHAT, "stream": True})
    assert response.status_code == 200
    *_, failed, done, rest = response.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    assert_error_object(json.loads(failed.removeprefix("data: "))["error"], "worker_crashed")


@contextmanager
def nothing_to_spare(scheduling: dict[str, Any]) -> Iterator[httpx2.Client]:
    """A server with room for one model, and that one in use for as long as the block runs."""
    with running(budget=1, scheduling=scheduling) as server, server.client() as client, server.connect() as sock:
        server.workers.hold("token atlas")
        assert client.post("/admin/models/atlas/load").is_success
        sock.sendall(post("/v1/completions", json.dumps(TEXT).encode()))
        server.seen("submit atlas")
        yield client
        server.open("token atlas")
        assert b" 200 OK" in read_until(sock, b"}}}")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("scheduling", "status", "code"),
    [({"max_queued": 0}, 429, "queue_full"), ({"queue_timeout": "1ms"}, 503, "queue_timeout")],
)
def test_what_fails_in_the_queue_has_a_status_of_its_own_streamed_or_not(
    scheduling: dict[str, Any], status: int, code: str, stream: bool
) -> None:
    with nothing_to_spare(scheduling) as client:
        response = client.post("/v1/completions", json={**TEXT, "model": "org/scribe", "stream": stream})
        assert_error(response, status, code, "model")
        assert int(response.headers["retry-after"]) >= 1


def test_a_load_that_fails_answers_streams_too(server: Running, client: httpx2.Client) -> None:
    server.workers.failures["atlas"] = [errors.LoadFailed("atlas has no weights")]
    assert_error(client.post("/v1/completions", json={**TEXT, "stream": True}), 502, "load_failed")


def test_a_model_over_the_budget_is_not_worth_a_retry() -> None:
    with running(budget=0) as server, server.client() as client:
        response = client.post("/v1/completions", json=TEXT)
        assert_error(response, 507, "model_too_large", "model")
        assert response.headers["x-should-retry"] == "false"


BUSY = [cls for cls in ANSWERS if issubclass(cls, errors.Busy)]


@pytest.mark.parametrize("cls", BUSY)
@pytest.mark.parametrize(("guess", "said"), [(0.0, b"1"), (0.2, b"1"), (7.01, b"8"), (60.0, b"60")])
def test_retry_after_is_whole_seconds_and_at_least_one(cls: type[errors.Busy], guess: float, said: bytes) -> None:
    assert headers(cls("later", retry_after=guess)) == [(b"retry-after", said)]


def test_nobody_is_told_to_retry_what_will_fail_again() -> None:
    never = (b"x-should-retry", b"false")
    assert headers(errors.LoadFailed("x")) == headers(errors.ModelTooLarge("x")) == [never]
    # Some of OpenAI's clients take a wait over a minute for none at all.
    assert headers(errors.LoadCooldown("x", retry_after=300.0)) == [(b"retry-after", b"300"), never]
    assert headers(errors.WorkerCrashed("x")) == []


def test_method_not_allowed_names_the_methods(shared: httpx2.Client) -> None:
    assert shared.put("/v1/models").headers["allow"] == "GET, HEAD, OPTIONS"


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/v1/chat/completions", "POST, OPTIONS"),
        ("/chat/completions", "POST, OPTIONS"),
        ("/v1/completions", "POST, OPTIONS"),
        *(
            (path, "GET, HEAD, OPTIONS")
            for path in ("/v1/models", "/v1/models/org/scribe", "/health", "/ready", "/metrics", "/openapi.json")
        ),
        *((path, "GET, HEAD, OPTIONS") for path in ("/admin/status", "/admin/events", "/admin/models/atlas")),
        *((path, "POST, OPTIONS") for path in ("/admin/reload", "/admin/models/atlas/load")),
    ],
)
def test_options_names_the_methods(shared: httpx2.Client, path: str, allowed: str) -> None:
    response = shared.options(path)
    assert (response.status_code, response.content) == (204, b"")
    assert response.headers["allow"] == allowed
    assert response.headers["x-request-id"]


@pytest.mark.parametrize("path", ["/api/tags", "/api/chat", "/v1/messages"])
def test_who_speaks_another_language_is_told_which_is_spoken_here(shared: httpx2.Client, path: str) -> None:
    message = assert_error(shared.post(path, json={}), 404, "not_found")
    assert message == f"there is no POST {path}; this server speaks OpenAI's API, under /v1"


def test_options_of_what_is_not_there_and_of_what_is_not_for_all(shared: httpx2.Client) -> None:
    assert_error(shared.options("/v1/nope"), 404, "not_found")
    assert_error(shared.options("/admin/status", headers={"host": "roster.example"}), 403, "admin_required")


def test_a_body_over_the_limit_is_refused_before_it_is_sent(server: Running) -> None:
    with server.connect() as sock:
        sock.sendall(post("/v1/completions", b"").replace(b"Content-Length: 0", b"Content-Length: 99999999999"))
        assert b" 413 " in read_until(sock, b"request_too_large")


def test_a_chunked_body_is_cut_off_at_the_limit() -> None:
    with running(server={"request_limit": 1000}) as server, server.client() as client:
        assert client.post(
            "/v1/completions", content=iter([b"{", json.dumps(TEXT)[1:].encode()]), headers=JSON
        ).is_success
        response = client.post("/v1/completions", content=iter([b" " * 600] * 2), headers=JSON)
        assert_error(response, 413, "request_too_large")


def test_invalid_json_is_placed(shared: httpx2.Client) -> None:
    response = shared.post("/v1/completions", content=b'{\n  "a": 1,\n}', headers=JSON)
    assert assert_error(response, 400, "invalid_json").endswith("trailing comma in object (line 3, column 1)")
    response = shared.post("/v1/completions", content=b'{"a": 1', headers=JSON)
    assert assert_error(response, 400, "invalid_json").endswith("it ends too early, after 7 bytes")


@pytest.mark.parametrize(
    ("raw", "column"), [(b'{"a": "\\ud800"}', 14), (b'{"a": "\\\\\\ud800x"}', 16), (b'{"a": "\\ud800", "b": "c"}', 14)]
)
def test_half_a_surrogate_pair_is_placed(shared: httpx2.Client, raw: bytes, column: int) -> None:
    response = shared.post("/v1/completions", content=raw, headers=JSON)
    message = assert_error(response, 400, "invalid_json")
    assert message.endswith(f"unexpected end of escaped utf-16 surrogate pair (line 1, column {column})")


def test_words_of_a_body_that_breaks_off_are_no_surrogates(shared: httpx2.Client) -> None:
    response = shared.post("/v1/completions", content=b'{"a": "\\\\ud800"', headers=JSON)
    assert assert_error(response, 400, "invalid_json").endswith("it ends too early, after 15 bytes")
