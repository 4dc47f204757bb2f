"""Every route against every kind of caller, over real sockets: who gets in, and what those who do not get to know."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import httpx2
import pytest
from starlette.routing import BaseRoute, Mount, Route, Router

from mlx_roster.server.access import RULES, Rule, ruled
from mlx_roster.server.app import create_app
from tests.server.harness import Running, assert_error
from tests.server.keys import GOOD, HASHED, OPS, PIRATE, SCRIBE, bearer

TEXT = {"model": "atlas", "prompt": "hi"}
CHAT = {"model": "atlas", "messages": [{"role": "user", "content": "hi"}]}
BODIES = {"/v1/completions": TEXT, "/v1/chat/completions": CHAT, "/chat/completions": CHAT}


@pytest.fixture(scope="module")
def client(keyed: Running) -> Iterator[httpx2.Client]:
    with keyed.client() as client:
        yield client


# The table, and the router


def walked(routes: Iterable[BaseRoute], above: str = "") -> Iterator[tuple[str, BaseRoute]]:
    """Every route with its whole path, mounts gone into."""
    for route in routes:
        if isinstance(route, Mount) and route.routes:
            yield from walked(route.routes, above + route.path)
        else:
            yield above + (route.path if isinstance(route, Route | Mount) else repr(route)), route


def test_every_route_has_its_rule(shared_server: Running) -> None:
    app = create_app(shared_server.registry, shared_server._reload)
    paths = [path for path, _ in walked(app._app.routes)]
    assert len(paths) == len(set(paths)) == len(RULES)
    assert set(paths) == RULES.keys()
    assert {path for path in paths if path.startswith("/admin")} == {
        path for path, rule in RULES.items() if rule is Rule.ADMIN
    }
    assert {path for path, rule in RULES.items() if rule is Rule.PUBLIC} == {"/health", "/ready"}


async def nowhere(scope: Any, receive: Any, send: Any) -> None:
    raise AssertionError


@pytest.mark.parametrize(
    "route",
    [Route("/new", nowhere), Mount("/admin", app=Router([Route("/new", nowhere)])), Mount("/health", app=nowhere)],
)
def test_a_route_without_a_rule_is_no_start(route: BaseRoute) -> None:
    assert {path for path, _ in walked([route])} - RULES.keys() or isinstance(route, Mount)
    with pytest.raises(LookupError, match="has no rule"):
        ruled([Route("/health", nowhere), route])


# Every route, every method, every caller

NOBODY, WRONG, NARROW = "no key", "a wrong key", "a key without the scope"


class Door(NamedTuple):
    method: str
    path: str
    rule: Rule


METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS")
#: Made of the table: whatever is added to it is asked for, too.
PLACES = {path.replace("{id:path}", "atlas"): rule for path, rule in RULES.items() if path != "/admin/events"}
UNKNOWN = {
    **dict.fromkeys(
        ("/", "/v1", "/v1/nope", "/models", "/completions", "//health", "/docs", "/Admin/status"), Rule.KEY
    ),
    **dict.fromkeys(("/admin", "/admin/", "/admin/nope", "/admin/models"), Rule.ADMIN),
}
DOORS = [Door(method, path, rule) for path, rule in {**PLACES, **UNKNOWN}.items() for method in METHODS]
DOORS += [Door(method, "/admin/events", Rule.ADMIN) for method in METHODS if method != "GET"]


def knock(client: httpx2.Client, door: Door, **headers: str) -> httpx2.Response:
    body = BODIES.get(door.path) if door.method == "POST" else None
    return client.request(door.method, door.path, json=body, headers=headers)


def refused(response: httpx2.Response, status: int, code: str) -> None:
    """As the one shape says, which a HEAD has without its body."""
    if response.request.method == "HEAD":
        assert (response.status_code, response.content) == (status, b"")
    else:
        assert_error(
            response,
            status,
            code,
            *(["model"] if code == "model_not_allowed" and response.json()["error"]["param"] else []),
        )
    assert ("www-authenticate" in response.headers) == (status == 401)


@pytest.mark.parametrize("door", DOORS, ids=lambda door: f"{door.method} {door.path}")
@pytest.mark.parametrize("caller", [NOBODY, WRONG])
def test_without_a_good_key(keyed: Running, client: httpx2.Client, door: Door, caller: str) -> None:
    before = list(keyed.workers.history)
    response = knock(client, door, **({} if caller is NOBODY else bearer("wrong-key-0123456789")))
    if door.rule is Rule.PUBLIC:
        assert response.status_code in (200, 204, 405)
    else:
        refused(response, 401, "invalid_api_key")
        assert response.headers["www-authenticate"] == "Bearer"
        assert "allow" not in response.headers
    assert keyed.workers.history == before


@pytest.mark.parametrize("door", DOORS, ids=lambda door: f"{door.method} {door.path}")
def test_with_a_key_that_lacks_the_scope(keyed: Running, client: httpx2.Client, door: Door) -> None:
    before = list(keyed.workers.history)
    match door.rule:
        case Rule.INFER:
            refused(knock(client, door, **bearer(OPS)), 403, "model_not_allowed")
        case Rule.OPERATE | Rule.ADMIN:
            for key in (SCRIBE, HASHED):
                refused(knock(client, door, **bearer(key)), 403, "admin_required")
        case _:
            assert knock(client, door, **bearer(SCRIBE)).status_code == expected(door)
    assert keyed.workers.history == before


def expected(door: Door) -> int:
    """What the route itself says to whoever is let in."""
    if door.path in UNKNOWN:
        # The id of a model may be empty, as far as the router goes.
        return 404
    if door.method == "OPTIONS":
        return 204
    writes = door.path in BODIES or door.path == "/admin/reload" or door.path.startswith("/admin/models/atlas/")
    if door.path.startswith("/admin/models/atlas/") and door.method in ("GET", "HEAD"):
        return 405
    allowed = ("POST",) if writes else ("GET", "HEAD")
    if door.method not in allowed:
        return 405
    return 202 if door.path.endswith("/unload") else 200


@pytest.mark.parametrize("door", DOORS, ids=lambda door: f"{door.method} {door.path}")
def test_with_a_good_key(client: httpx2.Client, door: Door) -> None:
    response = knock(client, door, **bearer(GOOD))
    assert response.status_code in {expected(door), 200 if expected(door) == 202 else expected(door)}
    if response.status_code == 404 and door.method != "HEAD":
        assert_error(response, 404, "not_found")


@pytest.mark.parametrize("door", DOORS, ids=lambda door: f"{door.method} {door.path}")
@pytest.mark.parametrize("sent", [None, "Bearer no-key", "Bearer", "Basic Zm9vOmJhcg==", "x" * 5000])
def test_without_keys_anything_or_nothing_will_do(shared: httpx2.Client, door: Door, sent: str | None) -> None:
    response = knock(shared, door, **({} if sent is None else {"authorization": sent}))
    assert response.status_code in {expected(door), 200 if expected(door) == 202 else expected(door)}
    assert "www-authenticate" not in response.headers


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        *(("POST", path, body) for path, body in BODIES.items()),
        ("GET", "/v1/models/atlas", None),
        ("HEAD", "/v1/models/atlas", None),
        ("GET", "/v1/models/gpt-4o", None),
    ],
)
@pytest.mark.parametrize("key", [SCRIBE, PIRATE])
def test_with_a_key_without_the_model(
    keyed: Running, client: httpx2.Client, method: str, path: str, body: dict[str, Any] | None, key: str
) -> None:
    before = list(keyed.workers.history)
    response = client.request(method, path, json=body, headers=bearer(key))
    refused(response, 403, "model_not_allowed")
    if body is not None:
        streamed = client.post(path, json={**body, "stream": True}, headers=bearer(key))
        assert_error(streamed, 403, "model_not_allowed", "model")
    assert keyed.workers.history == before
    assert keyed.registry._state.board.queue.counted == 0
