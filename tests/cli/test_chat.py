"""`mlx-roster chat` at a terminal and in a pipe, against a real server."""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests.cli.elsewhere import answering
from tests.cli.terminal import at_terminal
from tests.server.harness import running
from tests.serving import PATIENCE, Server, demo_roster, serving
from tests.toys import babbler

FRANCE, PARIS = "What is the capital of France?", "The capital of France is Paris."
KEY = "sk-for-the-tests-of-chat"
THINKER = Path(__file__).parents[1] / "assets" / "thinker"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("chat")
    models = [f"  busy: {{source: {babbler(folder / 'busy')}}}", f"  thinker: {{source: {THINKER}}}"]
    with serving("serve", str(demo_roster(folder, models=models))) as server:
        yield server


def chat(url: str, *arguments: str, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mlx_roster", "chat", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        env=os.environ | {"MLX_ROSTER_URL": url} | environment,
        check=False,
        timeout=PATIENCE,
    )


def test_one_question(server: Server) -> None:
    done = chat(server.url, "atlas:pirate", "-p", FRANCE, "--temperature", "0")
    assert (done.returncode, done.stdout, done.stderr) == (0, "Arr! The capital of France be Paris.\n", "")


def test_a_question_from_a_pipe_to_the_default_model(server: Server) -> None:
    done = chat(server.url, "--temperature", "0", stdin=FRANCE)
    assert (done.returncode, done.stdout) == (0, f"{PARIS}\n")


def test_the_whole_response_as_json(server: Server) -> None:
    done = chat(server.url, "atlas", "-p", FRANCE, "--json", "--max-tokens", "2", "--seed", "3")
    response = json.loads(done.stdout)
    assert response["object"] == "chat.completion"
    assert response["usage"]["completion_tokens"] == 2


def test_a_refusal_is_an_exit_code_and_nothing_on_standard_output(server: Server) -> None:
    done = chat(server.url, "atlas:klingon", "-p", FRANCE)
    assert (done.returncode, done.stdout) == (1, "")
    assert "pirate" in done.stderr
    done = chat(server.url, "atlas", "-p", FRANCE, "--temperature", "-1", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["error"]["param"] == "temperature"


def test_nothing_to_ask(server: Server) -> None:
    assert chat(server.url, "atlas", stdin=" \n").returncode == 2


def test_no_server() -> None:
    done = chat("http://127.0.0.1:1", "-p", FRANCE)
    assert (done.returncode, done.stdout) == (2, "")
    assert "mlx-roster serve" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_talk(server: Server) -> None:
    with at_terminal("chat", "atlas", "--temperature", "0", "--url", server.url) as terminal:
        terminal.until("atlas> ")
        terminal.say(FRANCE)
        terminal.until(PARIS)
        terminal.until(r"\d+ tokens · .*first after")
        terminal.until("atlas> ")
        terminal.say("/adapter pirate")
        terminal.until("atlas:pirate> ")
        terminal.say("/retry")
        terminal.until("Arr! The capital of France be Paris.")
        terminal.say("/model scribe:shout")
        terminal.until("scribe:shout> ")
        terminal.say("/clear")
        terminal.say('"""What is the opposite')
        terminal.until(r"\.\.\. ")
        terminal.say('of hot?"""')
        terminal.until("scribe:shout> ")
        terminal.say("/model atlsa")
        terminal.until("did you mean atlas|atlsa")
        terminal.until("scribe:shout> ")
        terminal.say("/adapter none")
        terminal.until("scribe> ")
        terminal.press("\x04")
        assert terminal.end() == 0


def test_who_is_waited_for_is_told_so(server: Server) -> None:
    with at_terminal("chat", "atlas", "--temperature", "0", "--json", "--url", server.url) as terminal:
        terminal.until("what to ask\\? Ctrl-D ends it")
        terminal.say(FRANCE)
        terminal.press("\x04")
        terminal.until(PARIS)
        assert terminal.end() == 0


def test_ctrl_c_ends_the_answer_and_not_the_talk(server: Server) -> None:
    with at_terminal("chat", "busy", "--max-tokens", "30000", "--url", server.url) as terminal:
        terminal.until("busy> ")
        terminal.say("Talk!")
        with httpx2.Client(base_url=server.url) as client:

            def running() -> int:
                return int(client.get("/models/busy").json()["roster"]["in_flight"])

            while not running():  # here and below, the test's timeout is the limit
                pass
            terminal.press("\x03")
            terminal.until("stopped")
            while running():
                pass
        terminal.until("busy> ")
        terminal.press("half a line")
        terminal.interrupt("Ctrl-D ends the talk")
        terminal.say("/model atlas")
        terminal.until("atlas> ")
        terminal.say("/clear")
        terminal.until("forgotten")
        terminal.say("/set max_tokens 100")
        terminal.say("/set temperature 0")
        terminal.until("temperature is 0")
        terminal.say(FRANCE)
        terminal.until(PARIS)
        terminal.say("/exit")
        assert terminal.end() == 0


def test_an_answer_that_is_cut_off_says_so(server: Server) -> None:
    with at_terminal("chat", "atlas", "--max-tokens", "2", "--url", server.url) as terminal:
        terminal.say(FRANCE)
        terminal.until("cut off at max_tokens")


def test_reasoning_is_dim_and_no_part_of_what_is_remembered(server: Server, tmp_path: Path) -> None:
    saved = tmp_path / "talk.json"
    with at_terminal("chat", "thinker", "--temperature", "0", "--url", server.url) as terminal:
        terminal.say("What is 0 plus 0?")
        terminal.until("0 and 0 make 0")
        terminal.until("The answer is 0")
        terminal.until("tokens")
        terminal.say(f"/save {saved}")
        terminal.until("written to")
        terminal.say(f"/save {saved}")
        terminal.until("File exists")
        assert "\x1b[2m0 and 0 make 0.\x1b[0m\nThe answer is 0." in terminal.raw.replace("\x1b[0m\x1b[2m", "").replace(
            "\r", ""
        )
    request = json.loads(saved.read_text())
    assert [message["content"].strip() for message in request["messages"]] == ["What is 0 plus 0?", "The answer is 0."]
    assert request["model"] == "thinker"


def test_key_required(tmp_path: Path) -> None:
    path = demo_roster(tmp_path)
    path.write_text(f"{path.read_text()}auth: {{keys: [{{name: me, key: {KEY}, models: [atlas]}}]}}\n")
    with serving("serve", str(path)) as server:
        refused = chat(server.url, "atlas", "-p", FRANCE, MLX_ROSTER_KEY="")
        assert (refused.returncode, refused.stdout) == (1, "")
        assert "MLX_ROSTER_KEY" in refused.stderr
        done = chat(server.url, "atlas", "-p", FRANCE, "--temperature", "0", MLX_ROSTER_KEY=KEY)
        assert (done.returncode, done.stdout) == (0, f"{PARIS}\n")
        with at_terminal("chat", "--temperature", "0", "--url", server.url, MLX_ROSTER_KEY=KEY) as terminal:
            terminal.say("/models")
            terminal.until("atlas:french")
            terminal.say(FRANCE)
            terminal.until(PARIS)
            assert "scribe" not in terminal.text
            assert KEY not in terminal.raw


def test_what_it_waits_for_is_shown() -> None:
    with running(pulse=0.01) as fake:
        fake.workers.hold("load atlas")
        with at_terminal("chat", "atlas", "--url", fake.url) as terminal:
            terminal.until("atlas> ")
            terminal.say("Hi")
            terminal.until("loading")
            fake.open("load atlas")
            terminal.until("tokens? ·")
            terminal.until("atlas> ")


class _Hostile(http.server.BaseHTTPRequestHandler):
    """A server whose model writes what a terminal would obey, in pieces."""

    def do_GET(self) -> None:
        self._send(b'{"data": [{"id": "evil\\u001b]0;owned\\u0007"}]}', "application/json")

    def do_POST(self) -> None:
        pieces = ["\x1b", "]0;owned\x07", "\x1b[2J", "\x9b31m", "line \u2028 one\n", "\ud83d"]
        chunks = [{"choices": [{"delta": {"content": piece}}]} for piece in pieces]
        body = ": loading\x1b[2J 43%\n\n" + "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks)
        self._send((body + 'data: {"error": {"message": "no\\u001b[5m", "type": "x", "code": "y"}}\n\n').encode())

    def _send(self, body: bytes, kind: str = "text/event-stream") -> None:
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def test_what_a_model_writes_does_not_reach_the_terminal_as_commands() -> None:
    with answering(_Hostile) as url, at_terminal("chat", "--url", url) as terminal:
        terminal.until("> ")
        terminal.say("Hi")
        terminal.until(r"one\n")
        terminal.until("no")
        terminal.until("> ")
        for command in ("\x1b]0;", "\x07", "\x1b[2J", "\x9b", "\x1b[5m"):
            assert command not in terminal.raw


def test_a_pipe_gets_what_a_model_writes_as_it_is_and_an_exit_code() -> None:
    with answering(_Hostile) as url:
        done = chat(url, "-p", "Hi")
    assert done.returncode == 1
    assert done.stdout == "\x1b]0;owned\x07\x1b[2J\x9b31mline \u2028 one\n\N{REPLACEMENT CHARACTER}\n"
    assert done.stderr == "no[5m\n"
