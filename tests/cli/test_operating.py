"""Commands that talk to a running server: here one over fake workers, and things that are none."""

from __future__ import annotations

import http.server
import json
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from click.testing import Result
from typer.testing import CliRunner

from mlx_roster.cli import app
from mlx_roster.cli.places import default_url
from mlx_roster.cli.remote import Refused, Remote, Unreachable
from mlx_roster.errors import LoadFailed
from mlx_roster.registry.overview import Reload
from tests.cli.elsewhere import answering
from tests.server.harness import Running, running
from tests.serving import interruptible


@pytest.fixture
def server() -> Iterator[Running]:
    with running() as server:
        yield server


def run(server: Running | str, *arguments: str) -> Result:
    url = server if isinstance(server, str) else server.url
    return CliRunner().invoke(app, [*arguments, "--url", url])


def said(server: Running | str, *arguments: str) -> str:
    done = run(server, *arguments)
    assert (done.exit_code, done.stderr) == (0, ""), done.output
    return done.stdout


def test_ps(server: Running) -> None:
    assert said(server, "ps").splitlines() == ["nothing is loaded", "budget: 0 B of 10 B held, 0 B promised"]
    said(server, "load", "atlas")
    said(server, "pin", "org/scribe")
    heads, atlas, scribe, budget = said(server, "ps").splitlines()
    assert heads.split("  ")[0] == "model"
    assert atlas.split()[:8] == ["atlas", "ready", "0", "0", "1", "B", "(1", "B)"]
    assert atlas.split()[8] in ("14m", "15m")
    assert scribe.split()[:2] == ["org/scribe", "unloaded"]
    assert " yes " in scribe
    assert budget == "budget: 1 B of 10 B held, 1 B promised"
    assert [model["id"] for model in json.loads(said(server, "ps", "--json"))["models"]] == ["atlas", "org/scribe"]


def test_what_is_done_to_a_model_is_said_in_a_line(server: Running) -> None:
    assert said(server, "load", "gpt-4o") == "atlas: ready, 1 B\n"
    assert said(server, "pin", "atlas") == "atlas: ready, 1 B, pinned\n"
    assert said(server, "unpin", "atlas:pirate") == "atlas: ready, 1 B\n"
    assert said(server, "unload", "atlas") == "atlas: unloaded\n"
    assert json.loads(said(server, "load", "org/scribe", "--json"))["state"] == "ready"
    assert server.workers.history == ["load atlas", "stop atlas", "load org/scribe"]


def test_unload_need_not_wait(server: Running) -> None:
    said(server, "load", "atlas")
    server.workers.hold("stop atlas")
    assert said(server, "unload", "atlas", "--no-wait") == "atlas: unloading, 1 B\n"
    server.open("stop atlas")


def test_an_answer_that_is_an_error(server: Running) -> None:
    done = run(server, "load", "atlsa")
    assert (done.exit_code, done.stdout) == (1, "")
    assert "did you mean atlas" in done.stderr
    server.workers.failures["atlas"] = [LoadFailed("atlas has no weights")]
    done = run(server, "load", "atlas", "--json")
    assert (done.exit_code, done.stderr) == (1, "atlas has no weights\n")
    assert json.loads(done.stdout)["error"]["code"] == "load_failed"


def test_names_that_mean_something_in_an_url() -> None:
    models = {"a?b#c%2F&d": {"source": "/fake/a"}, "org/b": {"source": "/fake/b"}}
    with running(models=models) as server:
        for name in models:
            assert said(server, "load", name).startswith(f"{name}: ready")


def test_reload(server: Running) -> None:
    assert said(server, "reload") == "nothing has changed\n"
    server.outcome = Reload(0.0, ok=True, added=("a", "b"), removed=("c",), notes=("server.port: takes a restart",))
    assert said(server, "reload") == "added: a, b\nremoved: c\nserver.port: takes a restart\n"
    server.outcome = Reload(0.0, ok=False, error="roster.yaml:3: models: no")
    done = run(server, "reload")
    assert (done.exit_code, done.stderr) == (1, "roster.yaml:3: models: no\n")
    assert re.search(r"the last reload, \d+s ago, failed: roster.yaml:3: models: no", said(server, "ps"))


@contextmanager
def following(server: Running, *options: str) -> Iterator[subprocess.Popen[str]]:
    """`mlx-roster events`, in a process of its own, for its lines come while it runs."""
    command = [sys.executable, "-m", "mlx_roster", "events", "--url", server.url, *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=interruptible) as process:
        try:
            yield process
        finally:
            process.kill()


def lines_of(process: subprocess.Popen[str]) -> Iterator[str]:
    assert process.stdout is not None
    return iter(process.stdout)


def test_events_until_the_server_ends(server: Running) -> None:
    with following(server) as process:
        lines = lines_of(process)
        assert next(lines) == "nothing is loaded\n"
        said(server, "load", "atlas")
        said(server, "unload", "atlas")
        server.uvicorn.should_exit = True
        words = [line.split()[1:3] for line in lines]
        assert process.wait() == 1
    assert [kind for kind, model in words if model == "atlas" and kind in ("loaded", "gone")] == ["loaded", "gone"]


def test_events_as_json_until_interrupted(server: Running) -> None:
    with following(server, "--json") as process:
        lines = map(json.loads, lines_of(process))
        assert next(lines)["event"] == "state"
        said(server, "load", "atlas")
        assert next(change for change in lines if change["kind"] == "grant")["status"]["state"] == "ready"
        process.send_signal(signal.SIGINT)
        assert list(lines) == []
        assert process.wait() == 0


def test_events_that_quote_what_looks_like_the_end_of_a_line(server: Running) -> None:
    with following(server, "--json") as process:
        lines = map(json.loads, lines_of(process))
        assert next(lines)["event"] == "state"
        server.workers.failures["atlas"] = [LoadFailed("torn\u2028apart")]
        assert run(server, "load", "atlas").exit_code == 1
        assert next(change for change in lines if change["kind"] == "failed")["fields"]["why"] == "torn\u2028apart"


NOWHERE = [
    "http://127.0.0.1:1",
    "http://127.0.0.1:1/v1/",
    "ftp://x",
    "http://[",
    f"http://{'x' * 70}",
]


@pytest.mark.parametrize("url", NOWHERE)
@pytest.mark.parametrize("command", [["ps"], ["events"], ["load", "x"]])
def test_nobody_there(url: str, command: list[str]) -> None:
    done = run(url, *command)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith(f"no mlx-roster answers at {url.removesuffix('/v1/')}; is it running?")


def test_the_scheme_may_be_left_out(server: Running) -> None:
    assert said(f"127.0.0.1:{server.port}", "load", "atlas") == "atlas: ready, 1 B\n"
    assert said(f"localhost:{server.port}/v1", "ps").splitlines()[-1] == "budget: 1 B of 10 B held, 1 B promised"
    assert "at http://localhost:1; is it running?" in run("localhost:1", "ps").stderr


class Somebody(http.server.BaseHTTPRequestHandler):
    answer: tuple[int, dict[str, str], bytes]

    def do_GET(self) -> None:
        status, headers, body = self.answer
        self.rfile.read(int(self.headers.get("content-length", "0")))
        self.send_response(status)
        for header in headers.items():
            self.send_header(*header)
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is the base class's
        pass


COMMANDS = [["ps"], ["ps", "--json"], ["events"], ["load", "x"], ["unload", "x"], ["pin", "x"], ["reload"]]

#: What a server of somebody else may answer: status, headers, body.
FOREIGN: dict[str, tuple[int, dict[str, str], bytes]] = {
    "page": (200, {"content-type": "text/html"}, b"<html>"),
    "object": (200, {}, b"{}"),
    "list": (200, {}, b"[1]"),
    "nearly a status": (200, {}, b'{"version": "1", "models": [{"id": "a", "state": 1}]}'),
    "endless depth": (200, {}, b"[" * 100_000),
    "no text": (200, {}, b"\xff\xfe\xfd"),
    "not encoded so": (200, {"content-encoding": "gzip"}, b"{}"),
    "elsewhere": (301, {"location": "/"}, b""),
    "another error": (404, {}, b'{"error": {"message": "Not Found", "type": "NotFoundError", "code": 404}}'),
    "flat error": (404, {}, b'{"error": "not found"}'),
    "stream of nothing": (200, {"content-type": "text/event-stream"}, b""),
    "stream of others": (200, {"content-type": "text/event-stream"}, b'event: change\ndata: {"a": 1}\n\n'),
    "stream of odd states": (200, {"content-type": "text/event-stream"}, b'event: state\ndata: {"models": [\n\n'),
    "stream of messages": (200, {"content-type": "text/event-stream"}, b'data: {"error": 1}\n\n'),
}


@pytest.mark.parametrize("answer", FOREIGN.values(), ids=FOREIGN.keys())
def test_somebody_else_there(answer: tuple[int, dict[str, str], bytes]) -> None:
    with answering(type("Says", (Somebody,), {"answer": answer})) as url:
        for command in COMMANDS:
            done = run(url, *command)
            assert (done.exit_code, done.stdout) == (2, ""), done.exception
            assert done.stderr == f"no mlx-roster answers at {url}; is it running? --url says where\n"


def test_who_accepts_and_never_answers_is_given_up_but_not_while_it_loads() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        with Remote(f"http://127.0.0.1:{listening.getsockname()[1]}", patience=0.05) as remote:
            loading = threading.Thread(target=lambda: failures.append(refusal(lambda: remote.act("x", "load"))))
            failures: list[str] = []
            loading.start()
            with listening.accept()[0] as sock:
                assert sock.recv(65536).startswith(b"POST /admin/models/x/load ")
                for ask in (remote.status, remote.reload, lambda: remote.act("x", "unload", wait=False)):
                    with pytest.raises(Unreachable):
                        ask()
                assert failures == []
                sock.sendall(b"HTTP/1.1 502 \r\nContent-Length: %d\r\n\r\n" % len(SAID_NO) + SAID_NO)
                loading.join()
        assert failures == ["x has no weights"]


SAID_NO = b'{"error": {"message": "x has no weights", "type": "server_error", "param": null, "code": "load_failed"}}'


def refusal(ask: Callable[[], object]) -> str:
    try:
        ask()
    except (Refused, Unreachable) as error:
        return str(error)
    raise AssertionError


@pytest.mark.parametrize(
    ("environment", "url"),
    [
        ({}, "http://127.0.0.1:8080"),
        ({"PORT": "9000"}, "http://127.0.0.1:9000"),
        ({"HOST": "localhost", "PORT": ""}, "http://localhost:8080"),
        ({"HOST": "::1", "PORT": "1"}, "http://[::1]:1"),
    ],
)
def test_where_a_server_is_if_nobody_says(environment: dict[str, str], url: str) -> None:
    assert default_url(environment) == url


def test_the_environment_may_say_where_the_server_is(server: Running) -> None:
    done = CliRunner().invoke(app, ["ps"], env={"MLX_ROSTER_URL": f"{server.url}/v1"})
    assert done.exit_code == 0


def test_a_proxy_of_the_environment_is_not_asked(server: Running) -> None:
    done = CliRunner().invoke(app, ["ps", "--url", server.url], env={"HTTP_PROXY": "http://127.0.0.1:1"})
    assert done.exit_code == 0


SCRIPT = """
import sys
from mlx_roster.cli import app
try:
    app(["ps", "--url", "http://127.0.0.1:1"])
except SystemExit as ended:
    print(ended.code)
print(*sorted(sys.modules))
"""


def test_nothing_heavy_is_imported() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    code, *modules = done.stdout.split()
    assert code == "2"
    assert "httpx2" in modules
    heavy = {"mlx", "mlx_lm", "transformers", "numpy", "uvicorn", "starlette", "huggingface_hub", "prometheus_client"}
    assert not heavy & set(modules)
    ours = {name for name in modules if name.startswith("mlx_roster.")}
    assert not {name for name in ours if name.split(".")[1] in ("server", "registry", "workers", "assembly", "engine")}


OPS, GUEST = "ops-key-0123456789", "guest-key-0123456789"
KEYS = [{"name": "ops", "key": OPS, "scopes": ["admin"]}, {"name": "guest", "key": GUEST}]
COMMANDS = (
    *(("ps",), ("reload",), ("events",)),
    *((verb, "atlas") for verb in ("load", "unload", "pin", "unpin")),
)


@pytest.fixture(scope="module")
def keyed() -> Iterator[Running]:
    with running(auth={"keys": KEYS}) as server:
        yield server


def test_a_server_with_keys_is_operated_with_one(keyed: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    assert said(keyed, "load", "atlas", "--key", OPS) == "atlas: ready, 1 B\n"
    monkeypatch.setenv("MLX_ROSTER_KEY", f"{OPS}\n")
    for command in COMMANDS:
        if command != ("events",):
            assert run(keyed, *command).exit_code == 0


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
@pytest.mark.parametrize(
    ("key", "words", "remedy"),
    [
        ("", "this server wants an API key", "--key or MLX_ROSTER_KEY says which"),
        (
            "wrong-key-0123456789",
            "this is none of the server's API keys",
            "that was the one of --key or MLX_ROSTER_KEY",
        ),
        (
            GUEST,
            "it lacks the scope admin",
            "--key or MLX_ROSTER_KEY says which: auth.keys in the roster has the scopes",
        ),
    ],
)
def test_who_has_no_good_key_is_told_where_it_goes(
    keyed: Running, command: tuple[str, ...], key: str, words: str, remedy: str
) -> None:
    done = run(keyed, *command, "--key", key)
    assert (done.exit_code, done.stdout) == (1, "")
    first, second = done.stderr.splitlines()
    assert words in first
    assert second.startswith(remedy)
    assert not key or key not in done.stderr


def test_a_key_that_no_header_can_have_is_none(keyed: Running) -> None:
    done = run(keyed, "ps", "--key", "schl\N{LATIN SMALL LETTER U WITH DIAERESIS}ssel-0123456789")
    assert (done.exit_code, done.stderr) == (2, "--key, or MLX_ROSTER_KEY: an API key is printable ASCII\n")


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_help_does_not_show_the_key(command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLX_ROSTER_KEY", OPS)
    monkeypatch.setenv("COLUMNS", "200")
    done = CliRunner().invoke(app, [command[0], "--help"])
    assert "MLX_ROSTER_KEY" in done.output
    assert OPS not in done.output
