"""What `/v1/models` and `/health` say."""

from __future__ import annotations

import httpx2
import pytest

from tests.server.harness import Running, post

ATLAS = {"aliases": ["gpt-4o"], "adapters": ["pirate"], "max_context": 2048}
PIRATE = {"aliases": ["captain"], "adapters": [], "max_context": 2048}
UNLOADED = {"state": "unloaded", "bytes": {"estimated": None, "measured": None}, "in_flight": 0, "queued": 0}
READY = {"state": "ready", "bytes": {"estimated": 1, "measured": 1}, "in_flight": 0, "queued": 0}


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
    empty = {"loading": 0, "ready": 0, "unloading": 0}
    assert client.get("/health").json() == {"status": "ok", "residents": empty}
    client.post("/v1/completions", json={"model": "atlas", "prompt": "hi"})
    assert client.get("/health").json() == {"status": "ok", "residents": {**empty, "ready": 1}}


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/atlas", "/health"])
def test_head_is_get_without_the_body(shared: httpx2.Client, path: str) -> None:
    got, head = shared.get(path), shared.head(path)
    assert head.status_code == got.status_code == 200
    assert head.content == b""
    assert head.headers["content-length"] == got.headers["content-length"]
