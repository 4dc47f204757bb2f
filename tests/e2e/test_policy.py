"""Waiting, making room and lifetimes as clients see them: real workers, real sockets."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2 as httpx

from tests.e2e.test_faults import body, events, said, whole
from tests.serving import PATIENCE, Server, serving
from tests.toys import babbler


@contextmanager
def served(
    folder: Path, scheduling: str, budget: str = "16MiB", more: str = ""
) -> Iterator[tuple[Server, httpx.Client]]:
    """Two models of 9 MiB each, most of it for prompts and answers to come, and room for one of them."""
    models = [
        f"  {name}: {{source: {babbler(folder / name, seed=seed)}, max_context: 30000{more}}}"
        for seed, name in enumerate(["hot", "cold"])
    ]
    lines = [f"memory: {{budget: {budget}, headroom: 0%}}", f"scheduling: {{{scheduling}}}", "models:", *models]
    roster = folder / "roster.yaml"
    roster.write_text("\n".join(lines) + "\n")
    with serving("serve", str(roster)) as server, httpx.Client(base_url=server.url, timeout=PATIENCE) as client:
        yield server, client


@contextmanager
def streaming(client: httpx.Client, model: str, tokens: int) -> Iterator[Iterator[str]]:
    """A stream of which the first event has come: the rest of it."""
    with client.stream("POST", "/chat/completions", json=body(model, tokens=tokens)) as response:
        payloads = events(response)
        next(payloads)
        yield payloads


def state(client: httpx.Client, model: str) -> str:
    found: str = client.get(f"/models/{model}").json()["roster"]["state"]
    return found


def test_stream_longer_than_ttl_finishes(tmp_path: Path) -> None:
    with served(tmp_path, "ttl: 20ms") as (server, client):
        with client.stream("POST", "/chat/completions", json=body("hot", tokens=1500)) as response:
            text = said(list(events(response)))
        assert text
        server.logged(r"unload model=hot .*idle for 20ms, its ttl")
        while state(client, "hot") != "unloaded":
            pass
        assert whole(client, "hot", 1500) == text


def test_keep_alive_zero_in_a_request_unloads_after_its_stream(tmp_path: Path) -> None:
    with served(tmp_path, "ttl: never") as (server, client):
        asked = {**body("hot", tokens=50), "keep_alive": 0}
        with client.stream("POST", "/chat/completions", json=asked) as response:
            assert list(events(response))[-1] == "[DONE]"
        server.logged(r"unload model=hot .*not to be kept")
        while state(client, "hot") != "unloaded":
            pass


def test_a_model_in_steady_use_is_closed_for_one_that_has_waited_too_long(tmp_path: Path) -> None:
    with served(tmp_path, "max_wait: 300ms, min_residency: 0") as (server, client):
        done = threading.Event()
        texts: list[str] = []

        def keep_busy() -> None:
            with httpx.Client(base_url=server.url, timeout=PATIENCE) as own:
                while not done.is_set():
                    texts.append(whole(own, "hot", 800))

        threads = [threading.Thread(target=keep_busy) for _ in range(3)]
        with streaming(client, "hot", 3000) as payloads:
            # Never idle, by the time that the others have begun.
            for thread in threads:
                thread.start()
            cold = threading.Thread(target=whole, args=(client, "cold", 20))
            cold.start()
            server.logged(r"drain model=hot .*evicted for cold")
            assert list(payloads)[-1] == "[DONE]"
        cold.join()
        done.set()
        for thread in threads:
            thread.join()
        assert len(set(texts)) == 1  # whoever ran when it was closed, ran to the end
        server.logged(r"loaded model=cold")
        server.logged(r"loaded model=hot", times=2)


def test_who_waits_too_long_is_503_with_retry_after_and_one_too_many_is_429(tmp_path: Path) -> None:
    with (
        served(tmp_path, "queue_timeout: 1s, max_wait: 1h, max_queued: 1") as (server, client),
        streaming(client, "hot", 6000) as payloads,
    ):
        answers: list[httpx.Response] = []
        asked = body("cold", stream=False, tokens=3)
        waiting = threading.Thread(target=lambda: answers.append(client.post("/chat/completions", json=asked)))
        waiting.start()
        server.logged("queue model=cold")
        refused = client.post("/chat/completions", json=asked)
        waiting.join()
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
        assert int(refused.headers["retry-after"]) >= 1
        (late,) = answers
        assert (late.status_code, late.json()["error"]["code"]) == (503, "queue_timeout")
        assert int(late.headers["retry-after"]) >= 1
        assert "in the way: hot (ready, 1 running)" in late.json()["error"]["message"]
        assert state(client, "hot") == "ready"
        assert list(payloads)[-1] == "[DONE]"
