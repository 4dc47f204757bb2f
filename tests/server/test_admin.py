"""The admin routes over fake workers: what they answer, and what it does to the models."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import pytest

from mlx_roster import __version__
from mlx_roster.errors import LoadFailed
from mlx_roster.registry.overview import Reload
from tests.server.harness import TIMEOUT, Running, assert_error, post, read_until, running

TEXT = {"model": "atlas", "prompt": "hi"}


def act(client: httpx2.Client, what: str, status: int = 200, **flags: bool) -> dict[str, Any]:
    """`POST /admin/models/WHAT`, and the ModelStatus that it answers with."""
    response = client.post(f"/admin/models/{what}", json=flags or None)
    assert response.status_code == status, response.text
    shown = response.json()
    assert isinstance(shown, dict)
    return shown


@contextmanager
def streaming(server: Running) -> Iterator[Any]:
    """A stream of atlas that has begun and does not go on until the gate "token atlas" is opened."""
    server.pieces = lambda _: ["one", "two"]
    server.workers.hold("token atlas")
    with server.connect() as sock:
        sock.sendall(post("/v1/completions", b'{"model": "atlas", "prompt": "hi", "stream": true}'))
        server.seen("submit atlas")
        yield sock


def test_the_status_of_a_server_that_has_done_nothing(shared: httpx2.Client) -> None:
    status = shared.get("/admin/status").json()
    assert status.pop("uptime_seconds") > 0
    assert status == {
        "version": __version__,
        "memory": {"budget": 10, "held": 0, "committed": 0},
        "queued": 0,
        "max_queued": 512,
        "preload": {"total": 0, "done": 0, "failed": []},
        "reload": None,
        "models": [],
    }


def test_load_waits_until_the_model_is_there(server: Running, client: httpx2.Client) -> None:
    server.workers.hold("load atlas")
    with server.client() as other:
        answers: list[dict[str, Any]] = []
        loading = threading.Thread(target=lambda: answers.append(act(other, "gpt-4o/load")))
        loading.start()
        server.seen("load atlas")
        assert client.get("/admin/models/atlas").json()["state"] == "loading"
        server.open("load atlas")
        loading.join(TIMEOUT)
    [status] = answers
    assert (status["id"], status["state"], status["leases"]) == ("atlas", "ready", 0)
    assert status["bytes"]["measured"] == 1
    assert status == {**client.get("/admin/models/atlas").json(), **drop(status, "events", "expires_in")}
    assert [model["id"] for model in client.get("/admin/status").json()["models"]] == ["atlas"]
    assert act(client, "atlas/load")["state"] == "ready"
    assert server.workers.history == ["load atlas"]


def drop(status: dict[str, Any], *moving: str) -> dict[str, Any]:
    """What changes with time, from one answer to the next."""
    return {name: status[name] for name in moving}


def test_a_load_that_fails_says_why(server: Running, client: httpx2.Client) -> None:
    server.workers.failures["atlas"] = [LoadFailed("atlas has no weights")]
    assert assert_error(client.post("/admin/models/atlas/load"), 502, "load_failed") == "atlas has no weights"
    status = client.get("/admin/models/atlas").json()
    assert (status["state"], status["failures"]) == ("cooldown", 1)
    assert status["cooldown"] > 0
    assert_error(client.post("/v1/completions", json=TEXT), 503, "load_cooldown", "model")
    # An operator who asks again has probably mended it.
    assert act(client, "atlas/load")["state"] == "ready"


def test_a_client_that_leaves_ends_the_load_that_nobody_else_waits_for(server: Running) -> None:
    server.workers.hold("load atlas")
    with server.connect() as sock:
        sock.sendall(post("/admin/models/atlas/load", b""))
        server.seen("load atlas")
    server.seen("cancel load atlas")


@pytest.mark.parametrize("name", ["atlas", "gpt-4o", "atlas:pirate", "captain"])
def test_every_name_means_its_base(server: Running, client: httpx2.Client, name: str) -> None:
    assert client.get(f"/admin/models/{name}").json()["id"] == "atlas"
    for deed in ("load", "pin", "unpin", "unload?wait=true"):
        assert act(client, f"{name}/{deed}")["id"] == "atlas"
    assert server.workers.history == ["load atlas", "stop atlas"]


def test_ids_with_a_slash(server: Running, client: httpx2.Client) -> None:
    assert act(client, "org/scribe/load")["id"] == "org/scribe"
    assert act(client, "org%2Fscribe/pin")["pinned"]
    assert client.get("/admin/models/org/scribe").json()["state"] == "ready"


@pytest.mark.parametrize("verb", ["load", "unload", "pin", "unpin"])
@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_a_verb_has_to_be_posted(shared: httpx2.Client, method: str, verb: str) -> None:
    for name in ("atlas", "org/scribe", "nobody"):
        response = shared.request(method, f"/admin/models/{name}/{verb}")
        told = assert_error(response, 405, "method_not_allowed")
        assert told == f"{method} /admin/models/{name}/{verb} is not possible; the method may be POST"
        assert response.headers["allow"] == "POST, OPTIONS"
    assert shared.head(f"/admin/models/atlas/{verb}").status_code == 405
    assert_error(shared.get(f"/admin/models/{verb}"), 404, "model_not_found", "model")


def test_an_id_may_end_like_a_verb() -> None:
    with running(models={"heavy/load": {"source": "/fake/a"}}) as server, server.client() as client:
        assert client.get("/admin/models/heavy/load").json()["id"] == "heavy/load"
        assert act(client, "heavy/load/load")["state"] == "ready"


def test_unload_drains(server: Running, client: httpx2.Client) -> None:
    with streaming(server) as sock:
        status = act(client, "atlas/unload", 202)
        assert (status["state"], status["leases"]) == ("draining", 1)
        server.open("token atlas")
        received = read_until(sock, b"[DONE]\n\n")
    assert b'"error"' not in received
    assert b'"finish_reason":"stop"' in received
    server.seen("stop atlas")
    server.until(lambda: server.registry.model_status("atlas").state == "unloaded")
    assert act(client, "atlas/unload")["state"] == "unloaded"


def test_unload_waits_where_it_is_asked_to(server: Running, client: httpx2.Client) -> None:
    with streaming(server), server.client() as other:
        answers: list[dict[str, Any]] = []
        unloading = threading.Thread(target=lambda: answers.append(act(other, "atlas/unload?wait=true")))
        unloading.start()
        server.until(lambda: server.registry.model_status("atlas").state == "draining")
        assert answers == []
        server.open("token atlas")
        unloading.join(TIMEOUT)
    assert [status["state"] for status in answers] == ["unloaded"]
    assert server.workers.history[-1] == "stop atlas"


@pytest.mark.parametrize("where", ["query", "body"])
def test_force_cuts_what_runs_and_says_so(server: Running, client: httpx2.Client, where: str) -> None:
    with streaming(server) as sock:
        if where == "query":
            act(client, "atlas/unload?force=true&wait=true")
        else:
            act(client, "atlas/unload", force=True, wait=True)
        received = read_until(sock, b"}}")
    assert b" 503 " in received
    assert b'"code":"draining"' in received
    assert "stop atlas" in server.workers.history


def test_a_pinned_model_makes_no_room() -> None:
    with running(budget=1) as server, server.client() as client:
        act(client, "atlas/load")
        assert act(client, "atlas/pin")["pinned"]
        assert client.get("/v1/models/atlas").json()["roster"]["pinned"]
        refused = client.post("/v1/completions", json={"model": "org/scribe", "prompt": "hi"})
        assert "atlas" in refused.json()["error"]["message"]
        assert not act(client, "atlas/unpin")["pinned"]
        assert client.post("/v1/completions", json={"model": "org/scribe", "prompt": "hi"}).is_success
        assert server.workers.history[:3] == ["load atlas", "stop atlas", "load org/scribe"]


def test_reload(server: Running, client: httpx2.Client) -> None:
    server.outcome = Reload(0.0, ok=True, added=("new",), changed=("atlas",), notes=("server.port: 1 takes a restart",))
    done = client.post("/admin/reload")
    assert done.status_code == 200
    shown = {
        "seconds_ago": 0.0,
        "ok": True,
        "error": None,
        "added": ["new"],
        "changed": ["atlas"],
        "removed": [],
        "settings": [],
    }
    assert done.json() == {**shown, "notes": ["server.port: 1 takes a restart"]}
    assert server.reloads == ["POST /admin/reload"]
    seen = client.get("/admin/status").json()["reload"]
    assert {**seen, "seconds_ago": 0.0} == done.json()


def test_a_wrong_roster_is_told_without_its_folder(server: Running, client: httpx2.Client) -> None:
    complaints = "/fake/etc/roster.yaml:3: models.a.sorce: unknown key\n/fake/etc/roster.yaml: models: is wrong / odd"
    server.outcome = Reload(0.0, ok=False, error=complaints)
    told = assert_error(client.post("/admin/reload"), 400, "invalid_config")
    assert told == "roster.yaml:3: models.a.sorce: unknown key\nroster.yaml: models: is wrong / odd"
    assert client.get("/admin/status").json()["reload"]["error"] == told


def test_settings_of_the_server_are_live(server: Running, client: httpx2.Client) -> None:
    body = {**TEXT, "mirostat": 2}
    assert client.post("/v1/completions", json=body).is_success
    changed = server.roster.server.model_copy(update={"strict_fields": True, "request_limit": 200})
    roster = server.roster.model_copy(update={"server": changed})

    async def reconfigure() -> None:
        server.registry.reconfigure(roster, 10)

    server.call(reconfigure())
    assert_error(client.post("/v1/completions", json=body), 400, "invalid_request", "mirostat")
    assert_error(client.post("/v1/completions", json={**TEXT, "prompt": "x" * 200}), 413, "request_too_large")
    assert server.workers.history == ["load atlas", "submit atlas"]


def test_keep_alive_zero_unloads_after_the_answer(server: Running, client: httpx2.Client) -> None:
    assert client.post("/v1/completions", json={**TEXT, "keep_alive": 0}).is_success
    server.seen("stop atlas")
    client.post("/v1/completions", json={**TEXT, "keep_alive": "never"}).raise_for_status()
    server.until(lambda: server.registry.model_status("atlas").leases == 0)
    assert server.registry.model_status("atlas").expires_in is None
    client.post("/v1/completions", json={**TEXT, "keep_alive": "90s"}).raise_for_status()
    server.until(lambda: server.registry.model_status("atlas").leases == 0)
    assert 0 < (server.registry.model_status("atlas").expires_in or 0) <= 90


def test_a_model_that_was_removed_and_still_drains_can_be_cut(server: Running, client: httpx2.Client) -> None:
    with streaming(server) as sock:
        gone = server.roster.model_copy(update={"models": {"org/scribe": server.roster.models["org/scribe"]}})

        async def reconfigure() -> None:
            server.registry.reconfigure(gone, 10)

        server.call(reconfigure())
        assert client.get("/v1/models/atlas").status_code == 404
        assert act(client, "atlas/unload", 202, force=True)["state"] == "draining"
        assert b'"code":"draining"' in read_until(sock, b"}")
