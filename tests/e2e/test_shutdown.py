"""How a server ends while it has work: what runs may finish, and what is cut says so. Nothing is left behind."""

from __future__ import annotations

import json
import signal
import socket
import threading

import httpx2 as httpx
import psutil
import pytest

from tests.e2e.test_faults import body, events, said, whole
from tests.serving import PATIENCE, Server


def told(server: Server) -> None:
    """Send the first SIGTERM, and wait until nobody new is let in."""
    server.process.send_signal(signal.SIGTERM)
    url = httpx.URL(server.url)
    while True:
        try:
            socket.create_connection((url.host, url.port), PATIENCE).close()
        except ConnectionError:
            return


def ended(server: Server, children: list[psutil.Process]) -> None:
    """Wait for the end: as it should be, and with nobody left."""
    assert server.process.wait(PATIENCE) == 0
    assert not psutil.wait_procs(children, PATIENCE)[1]
    assert not [line for line in server.lines if "Traceback" in line or " ERROR " in line]
    server.stop()


def test_shutdown_drains_then_cuts(server: Server, client: httpx.Client) -> None:
    undisturbed = whole(client, "busy", 1500)
    children = psutil.Process(server.process.pid).children()
    with (
        client.stream("POST", "/chat/completions", json=body("busy", tokens=1500)) as short,
        client.stream("POST", "/chat/completions", json=body("busy", tokens=30_000)) as long,
    ):
        one, other = events(short), events(long)
        begun = [next(one) for _ in range(5)]
        next(other)
        told(server)
        assert said([*begun, *one]) == undisturbed
        # The long one still runs, until patience is at an end: that of whoever says it twice.
        next(other)
        server.process.send_signal(signal.SIGINT)
        *_, error, done = other
    assert json.loads(error)["error"]["code"] == "draining"
    assert done == "[DONE]"
    ended(server, children)


@pytest.mark.parametrize("stream", [False, True])
def test_shutdown_while_loading(server: Server, client: httpx.Client, stream: bool) -> None:
    children = psutil.Process(server.process.pid).children()
    answers: list[httpx.Response] = []
    asking = threading.Thread(
        target=lambda: answers.append(client.post("/chat/completions", json=body("atlas", stream=stream)))
    )
    # The worker that will load it is stopped, so that the load lasts as long as it has to.
    (spare,) = children
    spare.suspend()
    asking.start()
    server.logged(r"worker \d+ takes atlas")
    told(server)
    # Who waits for a model would wait in vain: the grace is for answers that have begun.
    asking.join()
    (answer,) = answers
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "draining")
    ended(server, children)
