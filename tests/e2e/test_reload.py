"""A roster that changes under a running server: real files, signals, processes and streams."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2 as httpx
import psutil
import pytest

from mlx_roster.demo import directory
from tests.serving import PATIENCE, Server, demo_roster, serving
from tests.toys import babbler

DEMO = directory()


class Setup:
    """A roster file, a server that serves it, and a client."""

    def __init__(self, file: Path, server: Server, client: httpx.Client) -> None:
        self.file = file
        self.server = server
        self.client = client

    def reload(self) -> dict[str, Any]:
        """Ask for a reload that succeeds: what it says."""
        answer = self.client.post(f"{self.server.url.removesuffix('/v1')}/admin/reload")
        assert answer.status_code == 200, answer.text
        said: dict[str, Any] = answer.json()
        return said

    def status(self) -> dict[str, Any]:
        said: dict[str, Any] = self.client.get(f"{self.server.url.removesuffix('/v1')}/admin/status").json()
        return said

    def metric(self, name: str) -> float:
        text = self.client.get(f"{self.server.url.removesuffix('/v1')}/metrics").text
        (value,) = re.findall(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
        return float(value)

    def ids(self) -> list[str]:
        return [entry["id"] for entry in self.client.get("/models").json()["data"]]

    def ask(self, model: str, tokens: int = 3) -> httpx.Response:
        return self.client.post("/chat/completions", json=body(model, tokens) | {"stream": False})

    def text(self, model: str, tokens: int) -> str:
        """What a model says, from a stream with nothing beside it."""
        with self.stream(model, tokens) as payloads:
            return said(list(payloads))

    @contextmanager
    def stream(self, model: str, tokens: int) -> Iterator[Iterator[str]]:
        """The payloads of a stream, one by one."""
        with self.client.stream("POST", "/chat/completions", json=body(model, tokens)) as response:
            assert response.status_code == 200
            yield (line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: "))


def body(model: str, tokens: int) -> dict[str, Any]:
    messages = [{"role": "user", "content": "Go on."}]
    return {"model": model, "messages": messages, "max_tokens": tokens, "temperature": 0, "stream": True}


def said(payloads: list[str]) -> str:
    """The text of a whole, undisturbed stream."""
    assert payloads[-1] == "[DONE]", payloads[-1]
    chunks = [json.loads(payload) for payload in payloads[:-1]]
    assert not any("error" in chunk for chunk in chunks)
    return "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)


def write(file: Path, **models: str) -> None:
    """A roster of `models`, each with its entry in YAML, in one step."""
    entries = "".join(f"  {name}: {entry}\n" for name, entry in models.items())
    new = file.with_suffix(".new")
    new.write_text(f"memory: {{headroom: 0%}}\nmodels:\n{entries}")
    new.replace(file)


def source(name: str) -> str:
    return f"source: {DEMO}/models/{name}"


@contextmanager
def running(file: Path, *flags: str, **models: str) -> Iterator[Setup]:
    write(file, **models)
    with serving("serve", str(file), *flags) as server, httpx.Client(base_url=server.url, timeout=PATIENCE) as client:
        yield Setup(file, server, client)


def test_reload_of_an_invalid_file_keeps_serving_and_says_so(tmp_path: Path) -> None:
    file = tmp_path / "roster.yaml"
    with running(file, atlas=f"{{{source('atlas')}}}") as setup:
        before = setup.text("atlas", 5)
        assert setup.metric("mlx_roster_config_last_reload_success") == 1
        assert setup.status()["reload"] is None

        write(file, atlas=f"{{{source('atlas')}, max_adaptors: 3}}", scribe=f"{{{source('scribe')}, ttl: soon}}")
        setup.server.process.send_signal(signal.SIGHUP)
        first = setup.server.logged(r'roster\.yaml:(3: models.atlas.max_adaptors: unknown key, did you mean "max_ad)')
        second = setup.server.logged(r"roster\.yaml:(4: models.scribe.ttl: should be a duration)")
        assert any(" ERROR the roster was not reloaded" in line for line in setup.server.lines)

        # A failing request is no way to hear of it, so it shows elsewhere.
        while setup.status()["reload"] is None:
            pass
        reload = setup.status()["reload"]
        assert not reload["ok"]
        assert first in reload["error"]
        assert second in reload["error"]
        assert str(tmp_path) not in reload["error"]
        assert setup.metric("mlx_roster_config_last_reload_success") == 0
        assert setup.metric('mlx_roster_config_reloads_total{result="failed"}') == 1

        assert setup.ids() == ["atlas"]
        assert setup.text("atlas", 5) == before
        refused = setup.client.post(f"{setup.server.url.removesuffix('/v1')}/admin/reload")
        assert refused.status_code == 400
        assert first in refused.json()["error"]["message"]

        write(file, atlas=f"{{{source('atlas')}}}", scribe=f"{{{source('scribe')}}}")
        assert setup.reload()["added"] == ["scribe"]
        assert setup.status()["reload"]["ok"]
        assert setup.metric("mlx_roster_config_last_reload_success") == 1
        assert len({line for line in setup.server.lines if re.search(r"worker \d+ takes atlas", line)}) == 1


def test_reload_keeps_unchanged_models_loaded(tmp_path: Path) -> None:
    one, two = (babbler(tmp_path / name, seed=seed) for seed, name in enumerate(["one", "two"]))
    models = {"one": f"{{source: {one}}}", "two": f"{{source: {two}}}", "atlas": f"{{{source('atlas')}}}"}
    with running(tmp_path / "roster.yaml", **models) as setup:
        undisturbed, other = setup.text("one", 1500), setup.text("two", 20)
        assert setup.text("atlas", 3)
        workers = {name: setup.server.worker(name) for name in models}
        with setup.stream("one", 1500) as payloads:
            beside = [next(payloads) for _ in range(5)]
            changed = models | {
                "two": f"{{source: {one}}}",
                "atlas": f"{{{source('atlas')}, aliases: [gpt-4o], defaults: {{max_tokens: 2}}, "
                f"adapters: {{french: {DEMO}/adapters/french}}}}",
                "scribe": f"{{{source('scribe')}}}",
            }
            write(setup.file, **changed)
            reload = setup.reload()
            assert (reload["added"], reload["removed"]) == (["scribe"], [])
            assert set(reload["changed"]) == {"two", "atlas"}
            # All of it can be used at once, while the stream goes on.
            assert setup.ids() == ["one", "two", "atlas", "atlas:french", "scribe"]
            assert setup.text("two", 20) not in (other, "")
            assert setup.ask("atlas:french").status_code == 200
            messages = [{"role": "user", "content": "What is the capital of France?"}]
            brief = setup.client.post("/chat/completions", json={"model": "gpt-4o", "messages": messages}).json()
            assert (brief["model"], brief["usage"]["completion_tokens"]) == ("atlas", 2)
            assert setup.ask("scribe").status_code == 200
            beside += payloads
        assert said(beside) == undisturbed
        assert {name: setup.server.worker(name) == pid for name, pid in workers.items()} == {
            "one": True,
            "two": False,
            "atlas": True,
        }


def test_reload_that_removes_a_busy_model_drains_it_then_404(tmp_path: Path) -> None:
    models = {"atlas": f"{{{source('atlas')}}}", "busy": f"{{source: {babbler(tmp_path / 'busy')}}}"}
    with running(tmp_path / "roster.yaml", **models) as setup:
        undisturbed = setup.text("busy", 1500)
        worker = psutil.Process(setup.server.worker("busy"))
        with setup.stream("busy", 1500) as payloads:
            beside = [next(payloads) for _ in range(5)]
            write(setup.file, atlas=models["atlas"])
            assert setup.reload()["removed"] == ["busy"]
            gone = setup.ask("busy")
            assert (gone.status_code, gone.json()["error"]["code"]) == (404, "model_not_found")
            assert setup.ids() == ["atlas"]
            beside += payloads
        assert said(beside) == undisturbed
        worker.wait(PATIENCE)
        assert setup.ask("atlas").status_code == 200


@pytest.mark.parametrize(
    ("after", "status", "same_worker"),
    [("unchanged", 200, True), ("changed", 200, False), ("removed", 404, False)],
)
def test_reload_during_a_load(tmp_path: Path, after: str, status: int, same_worker: bool) -> None:
    models = {"atlas": f"{{{source('atlas')}}}", "scribe": f"{{{source('scribe')}}}"}
    with running(tmp_path / "roster.yaml", **models) as setup:
        # The worker that will load it is stopped, so that the load lasts as long as it has to.
        (spare,) = psutil.Process(setup.server.process.pid).children()
        spare.suspend()
        try:
            answers: list[httpx.Response] = []
            asking = threading.Thread(target=lambda: answers.append(setup.ask("scribe")))
            asking.start()
            assert setup.server.logged(r"worker (\d+) takes scribe") == str(spare.pid)
            if after == "changed":
                models["scribe"] = f"{{{source('scribe')}, max_adapters: 3}}"
            elif after == "removed":
                del models["scribe"]
            write(setup.file, **models)
            reload = setup.reload()
            assert (reload["changed"], reload["removed"]) == (
                ["scribe"] if after == "changed" else [],
                ["scribe"] if after == "removed" else [],
            )
        finally:
            with suppress(psutil.NoSuchProcess):  # what it was to load has gone, and the server has ended it
                spare.resume()
        asking.join()
        assert [answer.status_code for answer in answers] == [status]
        assert (setup.server.worker("scribe") == spare.pid) == (same_worker or after == "removed")
        assert setup.ask("atlas").status_code == 200
        assert setup.ask("scribe").status_code == status


def test_watch_sees_renames_symlink_swaps_and_vanishing_files(tmp_path: Path) -> None:
    for version, name in (("one", "atlas"), ("two", "scribe")):
        (tmp_path / version).mkdir()
        write(tmp_path / version / "roster.yaml", **{name: f"{{{source(name)}}}"})
    (tmp_path / "..data").symlink_to("one")
    file = tmp_path / "roster.yaml"
    file.symlink_to("..data/roster.yaml")
    with (
        serving("serve", str(file), "--watch") as server,
        httpx.Client(base_url=server.url, timeout=PATIENCE) as client,
    ):
        setup = Setup(file, server, client)
        assert setup.ids() == ["atlas"]
        (tmp_path / "..data_tmp").symlink_to("two")
        os.replace(tmp_path / "..data_tmp", tmp_path / "..data")
        server.logged("INFO reload ok=True added=scribe removed=atlas")
        assert setup.ids() == ["scribe"]

        (tmp_path / "..data").unlink()
        server.logged("WARNING .* is gone or cannot be read")
        assert setup.ask("scribe").status_code == 200
        (tmp_path / "..data").symlink_to("one")
        server.logged("INFO reload ok=True added=atlas removed=scribe")

        # An editor's way: a new file over the old one, which here takes the place of the link.
        write(file, atlas=f"{{{source('atlas')}, aliases: [gpt-4o]}}")
        server.logged("INFO reload ok=True changed=atlas")
        assert setup.ask("gpt-4o").status_code == 200


def test_a_server_without_a_file_says_so(tmp_path: Path) -> None:
    with serving("serve", "--model", f"{DEMO}/models/scribe") as server:
        server.process.send_signal(signal.SIGHUP)
        server.logged("started with --model: there is no roster file to read again")
        with httpx.Client(base_url=server.url, timeout=PATIENCE) as client:
            assert Setup(tmp_path, server, client).ask("scribe").status_code == 200


def test_more_pins_than_fit_end_the_start(tmp_path: Path) -> None:
    file = tmp_path / "roster.yaml"
    write(file, atlas=f"{{{source('atlas')}, pin: true}}", scribe=f"{{{source('scribe')}, preload: true}}")
    file.write_text(file.read_text().replace("{headroom: 0%}", "{headroom: 0%, budget: 1MiB}"))
    command = [sys.executable, "-m", "mlx_roster", "serve", str(file), "--port", "0"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert ended.returncode == 2
    assert re.search(
        r"pin or preload take .* more than the budget of 1 MiB: atlas .*B, scribe .*B$", ended.stderr, re.M
    )


def _as_a_shell_does() -> None:
    """In the child: the terminal is its own, and hanging up has not been ruled out (as nohup does for its children)."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@contextmanager
def in_a_terminal(*arguments: str) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """`mlx-roster ARGUMENTS` as a shell starts it in a terminal: the terminal's other end, and the process."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "mlx_roster", *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=_as_a_shell_does,
    )
    os.close(theirs)
    try:
        shown = b""
        while b"Ready at" not in shown:
            shown += os.read(ours, 4096)
        yield ours, process
    finally:
        process.kill()
        process.wait()


def test_closing_the_terminal_ends_the_server(tmp_path: Path) -> None:
    with in_a_terminal("serve", str(demo_roster(tmp_path)), "--port", "0") as (terminal, process):
        os.close(terminal)
        assert process.wait(PATIENCE) == 0


def test_sighup_from_elsewhere_reloads_a_server_in_a_terminal(tmp_path: Path) -> None:
    with in_a_terminal("serve", str(demo_roster(tmp_path)), "--port", "0") as (terminal, process):
        process.send_signal(signal.SIGHUP)
        shown = b""
        while b"SIGHUP" not in shown:  # the line that says who wants a reload
            shown += os.read(terminal, 4096)
        assert process.poll() is None
        os.close(terminal)
        process.wait(PATIENCE)


def test_sighup_during_the_start_does_no_harm(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mlx_roster", "serve", str(demo_roster(tmp_path)), "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    with process.stderr:
        status = Path(f"/proc/{process.pid}/status")
        hangup = 1 << (signal.SIGHUP - 1)
        if sys.platform == "linux":
            # As soon as it is not fatal any more: well before it serves.
            while not int(re.findall(r"SigIgn:\s*(\w+)", status.read_text())[0], 16) & hangup:
                assert process.poll() is None
            process.send_signal(signal.SIGHUP)
        url = next(found[1] for line in process.stderr if (found := re.search(r"ready at ([^\s\"]+)", line)))
        assert httpx.get(f"{url}/models", timeout=PATIENCE).status_code == 200
        process.send_signal(signal.SIGTERM)
        process.stderr.read()
        assert process.wait(PATIENCE) == 0
