"""The command line in a process of its own: exit codes, messages, and nothing that starts slowly for nothing."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from mlx_roster import __version__
from mlx_roster.cli import ELSEWHERE, PANELS
from mlx_roster.demo import directory
from tests.serving import demo_roster, serving


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {key: value for key, value in os.environ.items() if key not in ("HOST", "PORT")}
    return subprocess.run(
        [sys.executable, "-m", "mlx_roster", *arguments],
        capture_output=True,
        text=True,
        env=inherited | environment,
        check=False,
        timeout=60,
    )


def test_version() -> None:
    assert run("--version").stdout == f"mlx-roster {__version__}\n"


def test_an_unknown_key_ends_the_start_with_file_line_and_a_suggestion(tmp_path: Path) -> None:
    path = tmp_path / "roster.yaml"
    path.write_text("models:\n  a:\n    sorce: ./a\n")
    done = run("serve", str(path))
    assert done.returncode == 2
    assert f"{path}:3: models.a.sorce" in done.stderr
    assert 'did you mean "source"?' in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [["serve", "--model", ""], ["serve", "r.yaml", "--model", "m"], ["serve", "r.yaml", "--adapter-path", "a"]],
)
def test_what_to_serve_must_be_said_once(arguments: list[str]) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("word", "meant"),
    [("run", "'chat'"), ("list", "'check', 'ps'"), ("start", "'serve'"), ("help", "'--help'"), ("sevre", "'serve'")],
)
def test_who_comes_from_elsewhere_is_told_what_it_is_called_here(word: str, meant: str) -> None:
    done = run(word, "atlas", COLUMNS="200")
    assert done.returncode == 2
    assert f"No such command '{word}'. Did you mean {meant}?" in done.stderr


def test_what_commands_are_called_elsewhere_are_none_of_ours_and_what_is_meant_is() -> None:
    here = {function.__name__ for commands in PANELS.values() for function in commands}
    assert not here & ELSEWHERE.keys()
    assert {name for names in ELSEWHERE.values() for name in names} <= here | {"--version", "--help"}


@pytest.mark.parametrize(
    ("path", "advice"),
    [
        (
            "mlx-community/Qwen3-4B-4bit",
            "mlx-roster serve --model mlx-community/Qwen3-4B-4bit serves a model of the Hub",
        ),
        ("team.yaml", "mlx-roster init team.yaml writes one"),
        ("rosters/team.yaml", "mlx-roster init rosters/team.yaml writes one"),
        (".", "mlx-roster serve --model . serves the model in a folder"),
    ],
)
def test_a_roster_that_is_no_file(path: str, advice: str) -> None:
    for command in ("serve", "check"):
        done = run(command, path)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.splitlines()[1:] == [advice]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no disk here is always full")
def test_output_that_has_no_room_is_said_in_a_line(tmp_path: Path) -> None:
    roster = demo_roster(tmp_path)
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "mlx_roster", "check", str(roster)],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=60,
        )
    assert (done.returncode, done.stderr) == (1, "this cannot be written: No space left on device\n")


def test_a_port_that_is_taken_is_said_before_anything_is_loaded() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = run("demo", "--port", str(port))
    assert done.returncode == 2
    assert f"cannot listen on 127.0.0.1:{port}" in done.stderr
    assert "--port" in done.stderr


def test_only_loopback_may_be_bound() -> None:
    done = run("demo", HOST="0.0.0.0")
    assert done.returncode == 2
    assert "HOST" in done.stderr
    assert "loopback" in done.stderr


def test_watch_needs_a_file() -> None:
    done = run("serve", "--model", "m", "--watch")
    assert done.returncode == 2
    assert "--watch" in done.stderr


def test_check_prints_costs_and_loads_nothing(tmp_path: Path) -> None:
    done = run("check", str(demo_roster(tmp_path)))
    assert done.returncode == 0
    assert "atlas" in done.stdout
    report = json.loads(run("check", str(demo_roster(tmp_path)), "--json").stdout)
    assert report["together"] == ["atlas", "scribe"]


def test_check_imports_no_mlx(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from mlx_roster import check; from mlx_roster.config.load import load;"
        f"check.check(load(Path({str(demo_roster(tmp_path))!r})));"
        "print([name for name in sys.modules if name.split('.')[0] in ('mlx', 'mlx_lm', 'transformers', 'numpy')])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_serve_a_single_model_with_an_adapter_and_port_from_the_environment() -> None:
    demo = directory()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = ["serve", "--model", f"{demo}/models/atlas", "--adapter-path", f"{demo}/adapters/pirate"]
    with serving(*arguments, port=None, environment={"PORT": str(port)}) as server:
        assert server.url == f"http://127.0.0.1:{port}/v1"
        client = server.client()
        assert [model.id for model in client.models.list()] == ["atlas", "atlas:pirate"]
        reply = client.chat.completions.create(
            model="atlas",
            messages=[{"role": "user", "content": "What is the capital of France?"}],
            temperature=0,
            extra_body={"adapters": "pirate"},
        )
        assert reply.choices[0].message.content == "Arr! The capital of France be Paris."
