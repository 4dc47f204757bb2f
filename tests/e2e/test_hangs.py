"""Workers that hang, for real: stopped by a signal, or lost in a template. Nothing here is told that it hangs."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx2 as httpx
import psutil
import pytest

from tests.e2e.test_faults import body, events, whole
from tests.serving import PATIENCE, Server, demo_roster, serving
from tests.toys import babbler

#: Long enough for any step of these models on a machine that is busy, short enough to be waited for.
STALL = "5s"

#: A template that takes a day.
ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}{{ messages }}"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("hangs")
    (folder / "endless.jinja").write_text(ENDLESS)
    models = [
        f"  one: {{source: {babbler(folder / 'one')}}}",
        f"  two: {{source: {babbler(folder / 'two', seed=1)}}}",
        f"  lost: {{source: {babbler(folder / 'lost', seed=2)}, chat_template: endless.jinja}}",
        f"scheduling: {{stall_timeout: {STALL}}}",
    ]
    with serving("serve", str(demo_roster(folder, models=models))) as server:
        yield server


def health(client: httpx.Client, server: Server) -> tuple[int, str, int]:
    response = client.get(server.url.removesuffix("/v1") + "/health")
    return response.status_code, response.json()["status"], response.json()["stalled"]


def load(client: httpx.Client, server: Server, model: str) -> int:
    """Past a cooldown; the worker's process."""
    admin = server.url.removesuffix("/v1") + "/admin"
    assert client.post(f"{admin}/models/{model}/load").json()["state"] == "ready"
    return server.worker(model)


def test_health_is_503_when_the_engine_makes_no_progress(server: Server, client: httpx.Client) -> None:
    pid = load(client, server, "one")
    assert health(client, server) == (200, "ok", 0)
    with client.stream("POST", "/chat/completions", json=body("one", tokens=20_000)) as response:
        payloads = events(response)
        next(payloads)
        os.kill(pid, signal.SIGSTOP)
        while (said := health(client, server)) == (200, "ok", 0):
            pass
        assert said == (503, "stalled", 1)
        assert client.get(server.url.removesuffix("/v1") + "/ready").status_code == 200
        # Others are none the worse for it.
        assert whole(client, "two", 20)
        *_, error, done = payloads
    assert json.loads(error)["error"]["code"] == "worker_crashed"
    assert "hung" in json.loads(error)["error"]["message"]
    assert done == "[DONE]"
    while psutil.pid_exists(pid):
        pass
    assert whole(client, "one", 20)
    assert server.worker("one") != pid
    assert health(client, server) == (200, "ok", 0)


def test_a_request_whose_worker_hangs_before_its_first_token_is_502(server: Server, client: httpx.Client) -> None:
    pid = load(client, server, "one")
    os.kill(pid, signal.SIGSTOP)
    response = client.post("/chat/completions", json=body("one", stream=False))
    assert (response.status_code, response.json()["error"]["code"]) == (502, "worker_crashed")


def test_one_that_hangs_is_replaced_although_every_client_gives_up_before(server: Server, client: httpx.Client) -> None:
    pid = load(client, server, "one")
    os.kill(pid, signal.SIGSTOP)
    for _ in range(3):
        with pytest.raises(httpx.TimeoutException):
            client.post("/chat/completions", json=body("one", stream=False), timeout=0.3)
    server.logged(r"cut model=one .*hung", server_count(server) + 1)
    while psutil.pid_exists(pid):
        pass
    load(client, server, "one")
    assert whole(client, "one", 5)


def server_count(server: Server) -> int:
    """How often a worker of `one` has been replaced for hanging so far."""
    return sum("cut model=one" in line and "hung" in line for line in server.lines)


def test_a_request_that_never_gets_to_the_engine_is_seen_too(server: Server, client: httpx.Client) -> None:
    load(client, server, "lost")
    # What needs no template is not held up by what is: the engine itself is well.
    answers: list[httpx.Response] = []
    asking = threading.Thread(
        target=lambda: answers.append(client.post("/chat/completions", json=body("lost", stream=False)))
    )
    asking.start()
    asking.join()
    assert (answers[0].status_code, answers[0].json()["error"]["code"]) == (502, "worker_crashed")
    assert whole(client, "two", 5)


def test_a_worker_is_not_blamed_for_a_server_that_stood_still(tmp_path: Path) -> None:
    models = [f"  one: {{source: {babbler(tmp_path / 'one')}}}", f"scheduling: {{stall_timeout: {STALL}}}"]
    with (
        serving("serve", str(demo_roster(tmp_path, models=models))) as server,
        httpx.Client(base_url=server.url, timeout=PATIENCE) as client,
    ):
        pid = load(client, server, "one")
        with client.stream("POST", "/chat/completions", json=body("one", tokens=3000)) as response:
            payloads = events(response)
            next(payloads)
            os.kill(server.process.pid, signal.SIGSTOP)
            threading.Event().wait(7)  # that so much time passes is what this is about
            os.kill(server.process.pid, signal.SIGCONT)
            assert list(payloads)[-1] == "[DONE]"
        assert not any("hung" in line for line in server.lines)
        assert server.worker("one") == pid
