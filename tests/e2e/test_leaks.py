"""What a server holds after much coming and going: what it held before."""

from __future__ import annotations

import json
import re
import socket
import struct
import threading
import time
from collections.abc import Callable

import httpx2 as httpx
import psutil

from tests.e2e.test_faults import body, whole
from tests.serving import PATIENCE, Server

CONNECTIONS = 1000
#: So many at a time.
WAVE = 50

#: What the server process may hold more than before, in bytes: code that ran for the first time, and what the
#: allocator keeps.
MORE = 8 * 2**20


def until(condition: Callable[[], bool], otherwise: Callable[[], object]) -> None:
    """Wait for something that comes by itself."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, otherwise()


def request(server: Server, payload: dict[str, object]) -> bytes:
    content = json.dumps(payload).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {httpx.URL(server.url).netloc.decode()}\r\n"
    return f"{head}Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content


def come_and_go(server: Server, number: int) -> None:
    """One connection of somebody who does not stay, in one of several ways."""
    url = httpx.URL(server.url)
    stream, collected = (request(server, body("busy", tokens=20_000, stream=stream)) for stream in (True, False))
    with socket.create_connection((url.host, url.port), PATIENCE) as connection:
        match number % 5:
            case 0:
                pass
            case 1:
                connection.sendall(stream[: len(stream) // 2])
            case 2:
                connection.sendall(collected)
            case 3:
                connection.sendall(stream)
                assert connection.recv(100).startswith(b"HTTP/1.1 200 OK")
            case 4:
                connection.sendall(stream)
                # Not even a goodbye: a reset.
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def wave(server: Server, begin: int) -> None:
    threads = [threading.Thread(target=come_and_go, args=(server, begin + number)) for number in range(WAVE)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def busy(server: Server, client: httpx.Client) -> dict[str, int]:
    """What the registry still counts for the model."""
    entry = client.get("/models/busy").json()["roster"]
    return {key: entry[key] for key in ("in_flight", "queued")}


def figure(server: Server, client: httpx.Client, name: str) -> int:
    """A gauge of the server's."""
    said = client.get(f"{server.url.removesuffix('/v1')}/metrics").text
    found = re.search(rf"^mlx_roster_{name} (\S+)$", said, re.MULTILINE)
    assert found is not None
    return int(float(found[1]))


def test_thousand_connects_and_disconnects_leak_nothing(server: Server, client: httpx.Client) -> None:
    process = psutil.Process(server.process.pid)
    said = whole(client, "busy", 50)
    wave(server, 0)  # what is made once, is made
    at_rest = {"in_flight": 0, "queued": 0}
    until(lambda: busy(server, client) == at_rest, lambda: busy(server, client))
    worker = psutil.Process(server.worker("busy"))
    until(lambda: figure(server, client, "http_connections") == 1, process.net_connections)
    files, threads, nbytes = process.num_fds(), process.num_threads(), process.memory_info().rss
    tasks = figure(server, client, "event_loop_tasks")
    inside = worker.num_fds(), worker.num_threads()

    for begin in range(0, CONNECTIONS, WAVE):
        wave(server, begin)

    until(lambda: busy(server, client) == at_rest, lambda: busy(server, client))
    until(lambda: process.num_fds() <= files, lambda: process.net_connections())
    until(lambda: figure(server, client, "http_connections") == 1, process.net_connections)
    until(
        lambda: figure(server, client, "event_loop_tasks") <= tasks, lambda: figure(server, client, "event_loop_tasks")
    )
    assert process.num_threads() <= threads + 1
    assert process.memory_info().rss <= nbytes + MORE
    assert (worker.num_fds(), worker.num_threads()) == inside
    # No row is left in the batch: whoever comes now hears what was always said.
    answer = client.post("/chat/completions", json=body("busy", tokens=50, stream=False))
    assert answer.json()["choices"][0]["message"]["content"] == said
    assert server.worker("busy") == worker.pid
    assert not [line for line in server.lines if "Traceback" in line or " ERROR " in line]


def test_n_load_unload_cycles_return_to_baseline(server: Server, client: httpx.Client) -> None:
    process = psutil.Process(server.process.pid)
    admin = f"{server.url.removesuffix('/v1')}/admin"

    def cycle(model: str) -> psutil.Process:
        earlier = server.taken(model)
        assert client.post(f"{admin}/models/{model}/load").json()["state"] == "ready"
        worker = psutil.Process(server.worker(model, earlier + 1))
        assert whole(client, model, 3)
        gone = client.post(f"{admin}/models/{model}/unload", json={"wait": True})
        assert (gone.status_code, gone.json()["state"]) == (200, "unloaded")
        return worker

    def spare() -> list[psutil.Process]:
        """The one child that is there when nothing is loaded, as soon as it is alone."""
        until(lambda: len(process.children()) == 1, process.children)
        return process.children()

    for model in ("busy", "atlas"):
        cycle(model)
    spare()
    files, threads, nbytes = process.num_fds(), process.num_threads(), process.memory_info().rss

    workers = [cycle(model) for model in ("busy", "atlas") * 3]

    spare()
    assert not any(worker.is_running() for worker in workers)
    assert len({worker.pid for worker in workers}) == len(workers)
    until(lambda: process.num_fds() <= files, process.open_files)
    assert process.num_threads() <= threads + 1
    assert process.memory_info().rss <= nbytes + MORE
    status = client.get(f"{admin}/status").json()
    assert (status["memory"]["held"], status["memory"]["committed"], status["queued"]) == (0, 0, 0)
    assert {model["state"] for model in status["models"]} == {"unloaded"}
