"""Operating a real server: its admin routes, and the command line over them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2 as httpx

from mlx_roster.config.load import load
from mlx_roster.demo import directory
from mlx_roster.loaders.sizes import estimate
from tests.e2e.test_faults import body, events, said, whole
from tests.serving import PATIENCE, Server, demo_roster, interruptible, serving


def command(server: Server, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "mlx_roster", *arguments, "--url", server.url]


def run(server: Server, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(server, *arguments), capture_output=True, text=True, timeout=PATIENCE, check=False)


def cli(server: Server, *arguments: str) -> str:
    """What `mlx-roster ARGUMENTS` prints, which must go well."""
    done = run(server, *arguments)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


def refused(server: Server, *arguments: str) -> tuple[int, str]:
    """The exit code and the words of a command that must not go well."""
    done = run(server, *arguments)
    assert done.stdout == ""
    return done.returncode, done.stderr


@contextmanager
def following(server: Server, *options: str) -> Iterator[tuple[subprocess.Popen[str], Iterator[str]]]:
    """`mlx-roster events` while it runs, and its lines as they come."""
    with subprocess.Popen(
        command(server, "events", *options), stdout=subprocess.PIPE, text=True, preexec_fn=interruptible
    ) as process:
        assert process.stdout is not None
        try:
            yield process, iter(process.stdout)
        finally:
            process.kill()


def states(server: Server) -> dict[str, str]:
    return {model["id"]: model["state"] for model in json.loads(cli(server, "ps", "--json"))["models"]}


def test_load_ps_and_unload(server: Server, client: httpx.Client) -> None:
    assert cli(server, "load", "gpt-3.5-turbo").startswith("atlas: ready, ")
    assert states(server) == {"atlas": "ready"}
    heads, atlas, budget = cli(server, "ps").splitlines()
    assert heads.startswith("model ")
    assert atlas.split()[:4] == ["atlas", "ready", "0", "0"]
    assert budget.startswith("budget: ")
    # Loaded is loaded: a request does not wait.
    answer = client.post("/chat/completions", json=body("atlas", tokens=3, stream=False))
    assert answer.headers["x-roster-load-ms"] == "0"
    assert cli(server, "unload", "atlas") == "atlas: unloaded\n"
    assert states(server) == {"atlas": "unloaded"}
    code, message = refused(server, "load", "nope")
    assert (code, "no model 'nope'" in message) == (1, True)


def test_a_pinned_model_is_not_evicted(tmp_path: Path) -> None:
    entries = load(demo_roster(tmp_path)).models.values()
    # Room for either of the two, a little more than estimated, but not for both.
    room = max(estimate(Path(entry.source), entry, 0).total for entry in entries) + 2**20
    with serving("serve", str(demo_roster(tmp_path, budget=str(room)))) as server:
        assert cli(server, "load", "atlas").startswith("atlas: ready, ")
        assert cli(server, "pin", "atlas").endswith(", pinned\n")
        code, message = refused(server, "load", "scribe")
        assert (code, "atlas" in message) == (1, True)
        assert states(server)["atlas"] == "ready"
        cli(server, "unpin", "atlas")
        cli(server, "load", "scribe")
        assert states(server) == {"scribe": "ready", "atlas": "unloaded"}
        *_, evicted = (line for line in server.lines if " evict model=" in line)
        assert "atlas" in evicted


def test_unload_drains_and_a_stream_that_runs_comes_to_its_end(server: Server, client: httpx.Client) -> None:
    undisturbed = whole(client, "busy", 1500)
    with client.stream("POST", "/chat/completions", json=body("busy", tokens=1500)) as response:
        payloads = events(response)
        beside = [next(payloads) for _ in range(5)]
        assert cli(server, "unload", "busy", "--no-wait").startswith("busy: draining, ")
        beside += payloads
    assert said(beside) == undisturbed
    assert cli(server, "unload", "busy") == "busy: unloaded\n"


def test_unload_by_force_cuts_a_stream_and_says_so(server: Server, client: httpx.Client) -> None:
    with client.stream("POST", "/chat/completions", json=body("busy", tokens=20_000)) as response:
        payloads = events(response)
        for _ in range(5):
            next(payloads)
        assert cli(server, "unload", "busy", "--force") == "busy: unloaded\n"
        *_, error, done = payloads
    assert json.loads(error)["error"]["code"] == "draining"
    assert done == "[DONE]"
    assert whole(client, "busy", 5)


def test_events_as_json_lines_until_interrupted(server: Server) -> None:
    with following(server, "--json") as (process, lines):
        happenings: Iterator[dict[str, Any]] = map(json.loads, lines)
        first = next(happenings)
        assert (first["event"], first["models"]) == ("state", [])
        cli(server, "load", "scribe")
        loaded = next(change for change in happenings if change["kind"] == "loaded")
        assert (loaded["event"], loaded["model"]) == ("change", "scribe")
        assert loaded["fields"]["measured"] > 0
        cli(server, "unload", "scribe")
        assert next(change for change in happenings if change["kind"] == "gone")["model"] == "scribe"
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 0


def test_events_end_with_the_server(server: Server) -> None:
    with following(server) as (process, lines):
        assert next(lines) == "nothing is loaded\n"
        assert server.stop() == 0
        assert process.wait(PATIENCE) == 1


def test_reload_from_the_command_line(tmp_path: Path) -> None:
    path = demo_roster(tmp_path)
    with serving("serve", str(path)) as server:
        cli(server, "load", "atlas")
        path.write_text(path.read_text() + f"  again: {{source: {directory()}/models/scribe}}\n")
        assert cli(server, "reload") == "added: again\n"
        assert cli(server, "load", "again").startswith("again: ready")
        assert states(server)["atlas"] == "ready"
        path.write_text(path.read_text() + "  broken: {sorce: x}\n")
        code, message = refused(server, "reload")
        assert code == 1
        assert message.startswith("roster.yaml:")
        assert "models.broken.sorce" in message
        assert str(tmp_path) not in message
        assert "the last reload, " in cli(server, "ps")
        metrics = httpx.get(server.url.removesuffix("/v1") + "/metrics", timeout=PATIENCE).text
        assert 'mlx_roster_config_reloads_total{result="failed"} 1.0' in metrics
        assert "mlx_roster_config_last_reload_success 0.0" in metrics
