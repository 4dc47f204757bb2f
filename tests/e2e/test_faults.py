"""What a client sees when a worker is killed, or leaves in the middle: real processes, real sockets."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx2 as httpx
import psutil
import pytest

from tests.serving import PATIENCE, Server, demo_roster, serving
from tests.toys import babbler


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("faults")
    models = [f"  {name}: {{source: {babbler(folder / name, seed=seed)}}}" for seed, name in enumerate(["one", "two"])]
    with serving("serve", str(demo_roster(folder, models=models))) as server:
        yield server


def body(model: str, *, tokens: int = 400, stream: bool = True) -> dict[str, object]:
    messages = [{"role": "user", "content": "Go on."}]
    return {"model": model, "messages": messages, "max_tokens": tokens, "temperature": 0, "stream": stream}


def events(response: httpx.Response) -> Iterator[str]:
    """The payloads of a stream, one by one."""
    for line in response.iter_lines():
        if line.startswith("data: "):
            yield line.removeprefix("data: ")


def said(payloads: list[str]) -> str:
    """The text of a whole, undisturbed stream."""
    assert payloads[-1] == "[DONE]", payloads[-1]
    chunks = [json.loads(payload) for payload in payloads[:-1]]
    assert not any("error" in chunk for chunk in chunks)
    return "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)


def whole(client: httpx.Client, model: str, tokens: int = 400) -> str:
    with client.stream("POST", "/chat/completions", json=body(model, tokens=tokens)) as response:
        assert response.status_code == 200
        return said(list(events(response)))


def idle(process: psutil.Process, client: httpx.Client) -> bool:
    """Wait until a worker uses no processor time over a hundred requests to others: nothing runs in it any more."""
    while True:
        before = process.cpu_times().user
        for _ in range(100):
            client.get("/models")
        if process.cpu_times().user == before:
            return True


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=PATIENCE) as client:
        yield client


def test_worker_dies_mid_stream_client_gets_error_event_and_done(server: Server, client: httpx.Client) -> None:
    """And other_models_streams_survive_a_crash, and next_request_after_a_crash_reloads."""
    undisturbed = whole(client, "two", 3000)
    first = whole(client, "one", 50)
    beside: list[str] = []
    with client.stream("POST", "/chat/completions", json=body("two", tokens=3000)) as other:
        payloads = events(other)
        beside += [next(payloads) for _ in range(5)]
        with client.stream("POST", "/chat/completions", json=body("one", tokens=20_000)) as victim:
            cut = events(victim)
            for _ in range(5):
                next(cut)
            os.kill(server.worker("one"), signal.SIGKILL)
            *_, error, done = cut
        assert json.loads(error)["error"]["code"] == "worker_crashed"
        assert done == "[DONE]"
        beside += payloads
    assert said(beside) == undisturbed
    assert whole(client, "one", 50) == first
    assert client.get("/models/two").json()["roster"]["state"] == "ready"


def test_crash_without_a_stream_is_502(server: Server, client: httpx.Client) -> None:
    whole(client, "one", 1)
    pid = server.worker("one")
    with client.stream("POST", "/chat/completions", json=body("one", tokens=20_000)) as beside:
        # Its first token says that the worker is at work; the request below is then in the same batch.
        running = events(beside)
        next(running)
        answers: list[httpx.Response] = []
        asking = threading.Thread(
            target=lambda: answers.append(
                client.post("/chat/completions", json=body("one", tokens=20_000, stream=False))
            )
        )
        asking.start()
        while client.get("/models/one").json()["roster"]["in_flight"] < 2:
            pass
        os.kill(pid, signal.SIGKILL)
        asking.join()
    assert answers[0].status_code == 502
    assert answers[0].json()["error"]["code"] == "worker_crashed"


@pytest.mark.parametrize("stream", [True, False])
def test_disconnect_stops_the_generation(server: Server, client: httpx.Client, stream: bool) -> None:
    """client_disconnect_mid_stream_releases_lease_once and non_stream_disconnect_cancels_generation."""
    whole(client, "one", 1)
    payload = json.dumps(body("one", tokens=30_000, stream=stream)).encode()
    url = httpx.URL(server.url)
    with socket.create_connection((url.host, url.port)) as leaver:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {url.host}\r\nContent-Type: application/json\r\n"
        leaver.sendall(f"{head}Content-Length: {len(payload)}\r\n\r\n".encode() + payload)
        if stream:
            assert leaver.recv(1000).startswith(b"HTTP/1.1 200 OK")
        else:
            while client.get("/models/one").json()["roster"]["in_flight"] == 0:
                pass
    while client.get("/models/one").json()["roster"]["in_flight"]:
        pass
    assert idle(psutil.Process(server.worker("one")), client)


def test_worker_exits_when_its_parent_is_killed(tmp_path: Path) -> None:
    with serving("serve", str(demo_roster(tmp_path))) as server:
        with httpx.Client(base_url=server.url, timeout=PATIENCE) as client:
            whole(client, "atlas", 3)
        workers = psutil.Process(server.process.pid).children()
        assert workers
        assert server.stop(signal.SIGKILL) == -signal.SIGKILL
        _, alive = psutil.wait_procs(workers, timeout=PATIENCE)
        assert not alive
