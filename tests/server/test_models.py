"""What `/v1/models` and `/health` say."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx2
import msgspec
import pytest

from mlx_roster.errors import LoadFailed
from mlx_roster.metrics import Account
from mlx_roster.server.exchange import KEY, Exchange
from mlx_roster.server.openai.models import AT_ONCE, Models
from tests.server.harness import Running, post, running

ATLAS = {"aliases": ["gpt-4o"], "adapters": ["pirate"], "max_context": 2048}
PIRATE = {"aliases": ["captain"], "adapters": [], "max_context": 2048}
UNLOADED = {
    "state": "unloaded",
    "bytes": {"estimated": None, "measured": None},
    "in_flight": 0,
    "queued": 0,
    "pinned": False,
}
READY = {"state": "ready", "bytes": {"estimated": 1, "measured": 1}, "in_flight": 0, "queued": 0, "pinned": False}


def test_every_model_and_adapter_is_listed_loaded_or_not(server: Running, client: httpx2.Client) -> None:
    listed = client.get("/v1/models", headers={"content-type": "application/json"}).json()
    assert listed["object"] == "list"
    created = {entry.pop("created") for entry in listed["data"]}
    assert all(isinstance(seconds, int) for seconds in created)
    common = {"object": "model", "owned_by": "mlx-roster"}
    assert listed["data"] == [
        {"id": "atlas", **common, "roster": {**UNLOADED, **ATLAS}},
        {"id": "atlas:pirate", **common, "parent": "atlas", "roster": {**UNLOADED, **PIRATE}},
        {"id": "org/scribe", **common, "roster": {**UNLOADED, "aliases": [], "adapters": [], "max_context": None}},
    ]
    assert server.workers.history == []


@pytest.mark.parametrize(
    ("asked", "found"),
    [("atlas", "atlas"), ("gpt-4o", "atlas"), ("captain", "atlas:pirate"), ("org/scribe", "org/scribe"),
     ("org%2Fscribe", "org/scribe")],
)  # fmt: skip
def test_one_model_by_id_or_alias(shared: httpx2.Client, asked: str, found: str) -> None:
    entry = shared.get(f"/v1/models/{asked}").json()
    assert entry["id"] == found
    assert entry in shared.get("/v1/models").json()["data"]


def test_a_listing_follows_what_is_loaded(server: Running, client: httpx2.Client) -> None:
    client.post("/v1/completions", json={"model": "atlas", "prompt": "hi"}).raise_for_status()
    server.idle()
    assert client.get("/v1/models/atlas").json()["roster"] == {**READY, **ATLAS}

    server.workers.hold("token atlas")
    with server.connect() as sock:
        sock.sendall(post("/v1/completions", b'{"model": "atlas", "prompt": "hi"}'))
        server.seen("submit atlas", 2)
        assert client.get("/v1/models/atlas").json()["roster"]["in_flight"] == 1


def test_health_counts_residents(server: Running, client: httpx2.Client) -> None:
    empty = {"loading": 0, "ready": 0, "draining": 0, "unloading": 0}
    preload = {"done": 0, "of": 0, "failed": []}
    assert client.get("/health").json() == {"status": "ok", "residents": empty, "stalled": 0, "preload": preload}
    client.post("/v1/completions", json={"model": "atlas", "prompt": "hi"})
    loaded = {**empty, "ready": 1}
    assert client.get("/health").json() == {"status": "ok", "residents": loaded, "stalled": 0, "preload": preload}


def test_ready_is_when_every_preload_has_ended() -> None:
    models = {name: {"source": f"/fake/{name}", "preload": True} for name in ("one", "two", "three")}
    with running(models=models) as server, server.client() as client:

        async def preload() -> None:
            server.registry.start_preloads()

        def asked() -> tuple[int, str, dict[str, Any]]:
            response = client.get("/ready")
            assert client.get("/health").json()["preload"] == response.json()["preload"]
            return response.status_code, response.json()["status"], response.json()["preload"]

        server.workers.failures["two"] = [LoadFailed("two has no weights")]
        server.workers.hold("load one")
        server.workers.hold("load three")
        server.call(preload())
        server.seen("load one")
        assert asked() == (503, "starting", {"done": 0, "of": 3, "failed": []})
        server.open("load one")
        server.seen("load three")
        assert asked() == (503, "starting", {"done": 1, "of": 3, "failed": ["two"]})
        server.open("load three")
        server.until(lambda: server.registry.preloads.finished)
        assert asked() == (200, "ready", {"done": 2, "of": 3, "failed": ["two"]})


@pytest.mark.parametrize(
    "path", ["/v1/models", "/v1/models/atlas", "/health", "/ready", "/metrics", "/openapi.json", "/admin/models/atlas"]
)
def test_head_is_get_without_the_body(shared: httpx2.Client, path: str) -> None:
    got, head = shared.get(path), shared.head(path)
    assert head.status_code == got.status_code == 200
    assert head.content == b""
    # What the metrics say of this very process changes from one moment to the next, and their length with it.
    near = 500 if path == "/metrics" else 0
    assert abs(int(head.headers["content-length"]) - int(got.headers["content-length"])) <= near


def test_a_listing_of_many_is_made_in_turns() -> None:
    models = {f"model-{number}": {"source": f"/fake/{number}"} for number in range(10 * AT_ONCE)}
    turns: list[int] = []
    with running(models=models) as server, server.client() as client:

        async def turn() -> None:
            while True:
                turns.append(0)
                await asyncio.sleep(0)

        async def begin() -> asyncio.Task[None]:
            return asyncio.create_task(turn())

        async def listed() -> int:
            """The turns that others had, from the first bytes of the request to its answer."""
            sent: list[Any] = []
            scope = {"type": "http", KEY: Exchange("x", Account(0.0))}

            async def send(message: Any) -> None:
                sent.append(message)

            before = len(turns)
            await Models(server.registry)(scope, receive, send)
            assert len(msgspec.json.decode(sent[1]["body"])["data"]) == len(models)
            return len(turns) - before

        async def receive() -> Any:
            raise AssertionError

        task = server.call(begin())
        try:
            assert server.call(listed()) >= 10
        finally:
            server.loop.call_soon_threadsafe(task.cancel)
        assert len(client.get("/v1/models").json()["data"]) == len(models)
