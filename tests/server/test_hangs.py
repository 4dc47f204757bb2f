"""What clients and probes see of a worker that hangs or dies, on real sockets over workers that a test can hold up."""

from __future__ import annotations

import json
import time

import httpx2

from mlx_roster.testing import hello
from tests.server.harness import Running, Stuck, running

ASKED = {"model": "atlas", "prompt": "hi", "max_tokens": 5, "temperature": 0}


def health(client: httpx2.Client) -> tuple[int, str, int]:
    response = client.get("/health")
    return response.status_code, response.json()["status"], response.json()["stalled"]


def awaited(server: Running, model: str, seconds: float | None) -> None:
    """Have the worker be at one thing for so long."""
    since = None if seconds is None else time.monotonic() - seconds

    async def tell() -> None:
        server.workers.workers[model].awaited = since

    server.call(tell())


def tick(server: Running) -> None:
    async def now() -> None:
        server.registry.tick()

    server.call(now())


def test_health_says_so_from_half_of_the_deadline_on() -> None:
    with running(scheduling={"stall_timeout": "100s"}) as server, server.client() as client:
        client.post("/v1/completions", json=ASKED).raise_for_status()
        assert health(client) == (200, "ok", 0)
        awaited(server, "atlas", 40)
        assert health(client) == (200, "ok", 0)
        awaited(server, "atlas", 60)
        assert health(client) == (503, "stalled", 1)
        assert client.get("/ready").status_code == 200
        awaited(server, "atlas", None)
        assert health(client) == (200, "ok", 0)


def test_a_hang_ends_its_requests_and_health_says_so_until_it_is_replaced() -> None:
    with running(scheduling={"stall_timeout": "100s"}) as server, server.client() as client:
        client.post("/v1/completions", json=ASKED).raise_for_status()
        server.workers.hold("stop atlas")
        server.pieces = lambda _: Stuck(["one", "two"], lambda: server.workers.hold("token atlas"))
        with client.stream("POST", "/v1/completions", json={**ASKED, "stream": True}) as response:
            server.seen("submit atlas", 2)
            awaited(server, "atlas", 101)
            tick(server)
            server.seen("kill atlas")
            assert health(client) == (503, "stalled", 1)
            *_, error, done = [line.removeprefix("data: ") for line in response.iter_lines() if line[:5] == "data:"]
        assert json.loads(error)["error"]["code"] == "worker_crashed"
        assert done == "[DONE]"
        server.pieces = hello
        server.open("token atlas")
        server.open("stop atlas")
        client.post("/v1/completions", json=ASKED).raise_for_status()
        assert health(client) == (200, "ok", 0)
        assert "stop atlas" not in server.workers.history


def test_nothing_is_retried_after_its_first_token(server: Running, client: httpx2.Client) -> None:
    server.pieces = lambda _: Stuck(["one", "two"], lambda: server.workers.hold("token atlas"))
    with client.stream("POST", "/v1/completions", json={**ASKED, "stream": True}) as response:
        lines = response.iter_lines()
        assert next(lines).startswith("data: ")

        async def die() -> None:
            server.workers.workers["atlas"].die()

        server.call(die())
        events = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    assert json.loads(events[-2])["error"]["code"] == "worker_crashed"
    assert events[-1] == "[DONE]"
    server.open("token atlas")
    server.idle()
    assert [line for line in server.workers.history if line.split()[0] in ("load", "submit")] == [
        "load atlas",
        "submit atlas",
    ]
