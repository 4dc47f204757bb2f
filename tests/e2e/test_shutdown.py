"""How a server ends while it has work: what runs may finish, and what is cut says so. Nothing is left behind."""

from __future__ import annotations

import contextlib
import json
import re
import selectors
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import httpx2 as httpx
import psutil
import pytest

from tests.e2e.test_faults import body, events, idle, said, whole
from tests.serving import PATIENCE, Server, demo_roster, serving
from tests.toys import babbler


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


def roster_with(server: Server, line: str) -> None:
    """Say one thing more in the server's roster, and have it read again."""
    path = Path(server.process.args[4] if isinstance(server.process.args, list) else "")
    path.write_text(path.read_text() + line + "\n")
    server.process.send_signal(signal.SIGHUP)
    server.logged(r"reload ok=True")


@pytest.mark.parametrize("grace", ["0s", "500ms"])
def test_what_outlasts_the_grace_of_the_roster_as_it_is_now_is_cut(
    server: Server, client: httpx.Client, grace: str
) -> None:
    roster_with(server, f"server: {{shutdown_grace: {grace}}}")
    children = psutil.Process(server.process.pid).children()
    with client.stream("POST", "/chat/completions", json=body("busy", tokens=30_000)) as long:
        other = events(long)
        next(other)
        server.process.send_signal(signal.SIGTERM)
        *_, error, done = other
    assert json.loads(error)["error"]["code"] == "draining"
    assert done == "[DONE]"
    ended(server, children)


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_cuts_at_once(server: Server, client: httpx.Client, second: signal.Signals) -> None:
    # The answer would come to its end before the grace does.
    roster_with(server, "server: {shutdown_grace: 1h}")
    children = psutil.Process(server.process.pid).children()
    with client.stream("POST", "/chat/completions", json=body("busy", tokens=30_000)) as long:
        other = events(long)
        next(other)
        told(server)
        server.process.send_signal(second)
        *_, error, done = other
    assert json.loads(error)["error"]["code"] == "draining"
    assert done == "[DONE]"
    ended(server, children)


def test_who_does_not_read_is_not_waited_for(server: Server, client: httpx.Client) -> None:
    roster_with(server, "server: {shutdown_grace: 0s, write_timeout: 1h}")
    url = httpx.URL(server.url)
    asked = json.dumps({**body("busy", tokens=100), "n": 8, "logprobs": True, "top_logprobs": 20})
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(asked)}\r\n"
    with socket.socket() as listless:
        listless.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        listless.settimeout(PATIENCE)
        listless.connect((url.host, url.port))
        listless.sendall(f"{head}Content-Type: application/json\r\n\r\n{asked}".encode())
        listless.recv(1)
        # All has been generated, and there is no room for it any more.
        assert idle(psutil.Process(server.worker("busy")), client)
        children = psutil.Process(server.process.pid).children()
        server.process.send_signal(signal.SIGTERM)
        ended(server, children)
    assert server.logged(r"POST /v1/chat/completions (200 draining)") == "200 draining"


def test_who_asks_on_a_kept_connection_during_the_grace_is_told(server: Server, client: httpx.Client) -> None:
    children = psutil.Process(server.process.pid).children()
    root = server.url.removesuffix("/v1")
    with httpx.Client(timeout=PATIENCE) as kept:
        assert kept.get(f"{root}/health").status_code == 200
        with client.stream("POST", "/chat/completions", json=body("busy", tokens=30_000)) as long:
            other = events(long)
            next(other)
            told(server)
            answer = kept.post(f"{root}/v1/chat/completions", json=body("busy", stream=False))
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "draining")
            assert int(answer.headers["retry-after"]) >= 1
            for path in ("/health", "/ready"):
                answer = kept.get(f"{root}{path}")
                assert (answer.status_code, answer.json()["status"]) == (503, "draining")
            server.process.send_signal(signal.SIGTERM)
            assert list(other)[-1] == "[DONE]"
    ended(server, children)


def test_who_asks_without_end_on_kept_connections_holds_nothing_up(server: Server, client: httpx.Client) -> None:
    roster_with(server, "server: {shutdown_grace: 1h}")
    url = httpx.URL(server.url)
    children = psutil.Process(server.process.pid).children()
    asked, answers, tails = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n", 0, dict[socket.socket, bytes]()
    with selectors.DefaultSelector() as selector, contextlib.ExitStack() as stack:
        for _ in range(20):
            sock = stack.enter_context(socket.create_connection((url.host, url.port), PATIENCE))
            selector.register(sock, selectors.EVENT_READ, sock)
            # Some are always ahead, so that there is no moment without one that is being answered.
            sock.sendall(asked * 6)
        server.process.send_signal(signal.SIGTERM)
        while answers < 20_000 and selector.get_map():
            for key, _ in selector.select(PATIENCE):
                sock, chunk = key.data, b""
                with contextlib.suppress(ConnectionError):
                    chunk = sock.recv(65536)
                    more = (tails.get(sock, b"") + chunk).count(b"HTTP/1.1")
                    tails[sock], answers = chunk[-7:], answers + more
                    sock.sendall(asked * more)
                if not chunk:
                    selector.unregister(sock)
    assert answers < 20_000, "it goes on answering"
    ended(server, children)


def test_a_kept_connection_that_nobody_uses_holds_nothing_up(server: Server, client: httpx.Client) -> None:
    children = psutil.Process(server.process.pid).children()
    assert client.get("/models").status_code == 200
    server.process.send_signal(signal.SIGTERM)
    ended(server, children)


def test_restart_with_the_same_roster_comes_back_with_the_same_preloads(tmp_path: Path) -> None:
    models = [
        f"  busy: {{source: {babbler(tmp_path / 'busy')}, preload: true, pin: true}}",
        f"  other: {{source: {babbler(tmp_path / 'other')}}}",
    ]
    roster = demo_roster(tmp_path, models=models)

    def resident(server: Server) -> list[tuple[str, bool]]:
        root = server.url.removesuffix("/v1")
        while httpx.get(f"{root}/ready", timeout=PATIENCE).status_code != 200:
            pass
        found = httpx.get(f"{root}/admin/status", timeout=PATIENCE).json()["models"]
        return [(one["id"], one["pinned"]) for one in found if one["state"] == "ready"]

    with serving("serve", str(roster)) as first:
        assert resident(first) == [("busy", True)]
        port = httpx.URL(first.url).port
        # It is in use when it is told to go: its port can be had again at once, all the same.
        with httpx.stream("POST", f"{first.url}/chat/completions", json=body("busy", tokens=30_000)) as long:
            other = events(long)
            next(other)
            first.process.send_signal(signal.SIGTERM)
            first.process.send_signal(signal.SIGTERM)
            assert list(other)[-1] == "[DONE]"
            assert first.stop() == 0
    assert port is not None
    with serving("serve", str(roster), port=port) as second:
        assert resident(second) == [("busy", True)]


def test_a_server_whose_supervisor_has_gone_still_serves_and_ends_well(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "mlx_roster", "serve", str(demo_roster(tmp_path)), "--port", "0", "--verbose"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        url = next(match[1] for line in process.stderr if (match := re.search(r"\bready at ([^\s\"]+)", line)))
        process.stdout.close()
        process.stderr.close()
        with httpx.Client(base_url=url, timeout=PATIENCE) as client:
            assert whole(client, "atlas", 5)
            assert client.get("/models").status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
        process.wait()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a stopped process outlives its parent until it goes on")
@pytest.mark.parametrize("doing", ["loading", "decoding"])
def test_worker_exits_when_its_parent_is_killed_also_where_it_is_stopped(
    server: Server, client: httpx.Client, doing: str
) -> None:
    (spare,) = psutil.Process(server.process.pid).children()
    if doing == "loading":
        spare.suspend()
        threading.Thread(target=_asked, args=(client,)).start()
        server.logged(r"worker \d+ takes busy")
        _killed(server)
        return
    with client.stream("POST", "/chat/completions", json=body("busy", tokens=30_000)) as long:
        next(events(long))
        spare.suspend()
        _killed(server)


def _asked(client: httpx.Client) -> None:
    with contextlib.suppress(httpx.HTTPError):
        client.post("/chat/completions", json=body("busy"))


def _killed(server: Server) -> None:
    children = psutil.Process(server.process.pid).children()
    assert children
    assert server.stop(signal.SIGKILL) == -signal.SIGKILL
    assert not psutil.wait_procs(children, PATIENCE)[1]
