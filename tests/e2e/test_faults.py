"""What a client sees when a worker is killed, or leaves in the middle: real processes, real sockets."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2 as httpx
import psutil
import pytest

from tests.serving import PATIENCE, Server, demo_roster, serving
from tests.toys import babbler


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("faults")
    models = [
        f"  {name}: {{source: {babbler(folder / name, seed=seed)}}}" for seed, name in enumerate(["one", "two", "lone"])
    ]
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
        # Whatever was killed before cools down: an operator's word is what loads it now.
        admin = server.url.removesuffix("/v1") + "/admin"
        assert client.post(f"{admin}/models/one/load").json()["state"] == "ready"
        yield client


@contextmanager
def killed_in_mid_stream(server: Server, client: httpx.Client, model: str = "one") -> Iterator[Iterator[str]]:
    """A stream of which five events have come when its worker is killed: the events from then on."""
    with client.stream("POST", "/chat/completions", json=body(model, tokens=20_000)) as response:
        payloads = events(response)
        for _ in range(5):
            next(payloads)
        os.kill(server.worker(model), signal.SIGKILL)
        yield payloads


def test_worker_dies_mid_stream_client_gets_error_event_and_done(server: Server, client: httpx.Client) -> None:
    with killed_in_mid_stream(server, client) as payloads:
        *_, error, done = payloads
    assert json.loads(error)["error"]["code"] == "worker_crashed"
    assert done == "[DONE]"


def test_other_models_streams_survive_a_crash(server: Server, client: httpx.Client) -> None:
    undisturbed = whole(client, "two", 2000)
    with client.stream("POST", "/chat/completions", json=body("two", tokens=2000)) as other:
        payloads = events(other)
        beside = [next(payloads) for _ in range(5)]
        with killed_in_mid_stream(server, client) as cut:
            *_, done = cut
        assert done == "[DONE]"
        beside += payloads
    assert said(beside) == undisturbed
    assert client.get("/models/two").json()["roster"]["state"] == "ready"


def test_next_request_after_a_crash_reloads(server: Server, client: httpx.Client) -> None:
    before = whole(client, "lone", 50)
    first = server.worker("lone")
    with killed_in_mid_stream(server, client, "lone") as payloads:
        assert list(payloads)[-1] == "[DONE]"
    assert whole(client, "lone", 50) == before
    assert server.worker("lone") != first


def test_a_model_that_keeps_crashing_is_left_alone_for_a_while(server: Server, client: httpx.Client) -> None:
    for _ in range(2):
        admin = server.url.removesuffix("/v1") + "/admin"
        assert client.post(f"{admin}/models/one/load").json()["state"] == "ready"
        with killed_in_mid_stream(server, client) as payloads:
            assert list(payloads)[-1] == "[DONE]"
    response = client.post("/chat/completions", json=body("one"))
    assert (response.status_code, response.json()["error"]["code"]) == (503, "load_cooldown")
    assert 1 <= int(response.headers["retry-after"]) <= 300
    assert whole(client, "two", 3)


def test_busy_model_is_never_evicted_and_its_stream_is_byte_identical(tmp_path: Path) -> None:
    source = babbler(tmp_path / "busy")
    roster = demo_roster(tmp_path, budget="16MiB", models=[f"  busy: {{source: {source}}}"])
    with serving("serve", str(roster)) as server, httpx.Client(base_url=server.url, timeout=PATIENCE) as client:
        undisturbed = whole(client, "busy", 1500)
        with client.stream("POST", "/chat/completions", json=body("busy", tokens=1500)) as response:
            payloads = events(response)
            beside = [next(payloads) for _ in range(5)]
            # atlas takes most of the budget: it has to wait for the stream's end.
            waiting = threading.Thread(target=whole, args=(client, "atlas", 3))
            waiting.start()
            while client.get("/models/atlas").json()["roster"]["queued"] == 0:
                assert waiting.is_alive(), "it was refused, or not made to wait"
            beside += payloads
        waiting.join()
        assert said(beside) == undisturbed
        log = "\n".join(server.lines)
        assert log.index("evict model=busy") > log.index("loaded model=busy")
        assert log.index("load model=atlas") > log.index("evict model=busy")


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


@contextmanager
def asking(server: Server, payload: dict[str, object]) -> Iterator[socket.socket]:
    """A connection that has sent a request, and that hangs up at the end of the block."""
    url, content = httpx.URL(server.url), json.dumps(payload).encode()
    with socket.create_connection((url.host, url.port)) as connection:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {url.host}\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
        yield connection


def test_client_disconnect_mid_stream_releases_lease_once(server: Server, client: httpx.Client) -> None:
    whole(client, "one", 1)
    with asking(server, body("one", tokens=30_000)) as connection:
        assert connection.recv(1000).startswith(b"HTTP/1.1 200 OK")
    while client.get("/models/one").json()["roster"]["in_flight"]:
        pass
    assert idle(psutil.Process(server.worker("one")), client)


def test_non_stream_disconnect_cancels_generation(server: Server, client: httpx.Client) -> None:
    whole(client, "one", 1)
    with asking(server, body("one", tokens=30_000, stream=False)):
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


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the limits of another process cannot be set")
def test_without_a_file_descriptor_for_a_worker_a_load_is_502_and_the_next_one_works(
    server: Server, client: httpx.Client
) -> None:
    import resource

    process, undisturbed = psutil.Process(server.process.pid), whole(client, "two", 50)
    admin = server.url.removesuffix("/v1") + "/admin"
    # What is loaded, and the spare, have their descriptors: it is the next load but one that finds none.
    for model in ("lone", "one"):
        client.post(f"{admin}/models/{model}/unload")
        while client.get(f"/models/{model}").json()["roster"]["state"] != "unloaded":
            pass
    soft, hard = process.rlimit(resource.RLIMIT_NOFILE)
    resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (process.num_fds(), hard))
    try:
        answers = [client.post("/chat/completions", json=body(model, stream=False)) for model in ("lone", "one")]
        assert whole(client, "two", 50) == undisturbed
    finally:
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (soft, hard))
    failed = [answer for answer in answers if answer.status_code != 200]
    assert failed
    for answer in failed:
        assert (answer.status_code, answer.json()["error"]["code"]) == (502, "load_failed")
        assert "Too many open files" in answer.json()["error"]["message"]
    for model in ("lone", "one"):
        assert client.post(f"{admin}/models/{model}/load").json()["state"] == "ready"
        assert whole(client, model, 5)
