"""`mlx-roster pull`: real processes, and a real HTTP server in the Hub's place."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from mlx_roster.config.units import format_bytes
from tests.cli.processes import environment, on_terminal, run, start
from tests.loaders.fake_hub import FakeHub, Files, commit
from tests.loaders.hub_cache import weights

MODEL: Files = {
    "config.json": b'{"model_type": "llama"}',
    "tokenizer.json": b"{}",
    "model.safetensors": weights(300_000),
    "README.md": b"x",
    "pytorch_model.bin": b"x",
}
SIZE = sum(len(MODEL[name]) for name in ("config.json", "tokenizer.json", "model.safetensors"))
ADAPTER: Files = {
    "adapter_config.json": b'{"peft_type": "LORA", "base_model_name_or_path": "org/atlas"}',
    "adapter_model.safetensors": weights(1000),
    "tokenizer.json": b"{}",
}
BIG = "model.safetensors"


@pytest.fixture
def env(cache: Path, hub: FakeHub) -> dict[str, str]:
    hub.repos["org/atlas"] = dict(MODEL)
    return environment(cache, HF_ENDPOINT=hub.url)


def snapshot(cache: Path, repo: str = "org/atlas") -> Path:
    return cache / f"models--{repo.replace('/', '--')}" / "snapshots" / commit(repo)


def test_a_model_comes_with_what_it_takes(cache: Path, hub: FakeHub, env: dict[str, str], tmp_path: Path) -> None:
    done = run("pull", "org/atlas", at=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    first, *_, there, following = done.stdout.splitlines()
    assert first.startswith(
        "org/atlas: 293.1 KiB in 3 files; it takes about 322.3 KiB once loaded and fits the budget of"
    )
    assert there.startswith(
        f"org/atlas is in {snapshot(cache)}; it takes 322.3 KiB once loaded and fits the budget of "
    )
    assert following == "next: mlx-roster serve --model org/atlas, or mlx-roster init for a roster"
    assert (snapshot(cache) / BIG).read_bytes() == MODEL[BIG]
    assert hub.downloaded == {"config.json", "tokenizer.json", BIG}


def test_what_is_here_is_not_downloaded_again(cache: Path, hub: FakeHub, env: dict[str, str], tmp_path: Path) -> None:
    assert run("pull", "org/atlas", at=tmp_path, env=env).returncode == 0
    hub.seen.clear()
    done = run("pull", f"org/atlas@{commit('org/atlas')}", at=tmp_path, env=env)
    assert done.returncode == 0
    assert "all here already" in done.stdout
    assert hub.downloaded == set()


def test_for_scripts(cache: Path, env: dict[str, str], tmp_path: Path) -> None:
    done = run("pull", "org/atlas@main", "org/gone", "--json", at=tmp_path, env=env)
    assert done.returncode == 1
    atlas, gone = json.loads(done.stdout)["pulled"]
    assert atlas == {
        "repo": "org/atlas",
        "revision": "main",
        "commit": commit("org/atlas"),
        "kind": "model",
        "path": str(snapshot(cache)),
        "bytes": SIZE,
        "files": 3,
        "estimated": 330_000,
        "fits": True,
        "error": None,
    }
    assert gone["path"] is None
    assert gone["error"].startswith("the Hub has no org/gone, or it is private")
    assert done.stderr.splitlines() == [gone["error"]]


def test_a_pipe_gets_lines_and_a_terminal_a_bar(env: dict[str, str], hub: FakeHub, tmp_path: Path) -> None:
    code, seen = on_terminal("pull", "org/atlas", at=tmp_path, env=env)
    assert code == 0, seen
    assert "atlas, 3 files" in seen
    assert "━" in seen
    hub.repos["org/scribe"] = dict(MODEL)
    assert "━" not in run("pull", "org/scribe", at=tmp_path, env=env).stderr


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ({"atlas-Q4.gguf": b"x"}, "it has GGUF files only"),
        ({"config.json": b"{}", "pytorch_model.bin": b"x"}, "its weights are pickled"),
        ({"README.md": b"x"}, "it has no config.json"),
        ({key: MODEL[key] for key in ("config.json", BIG)}, "it has no tokenizer"),
        (MODEL | {"config.json": b'{"model_type": "teapot"}'}, "mlx-lm knows no model of type 'teapot'"),
        (MODEL | {"config.json": b"{"}, "its config.json is not valid JSON"),
        (MODEL | {"config.json": b'{"model_type": "llama", "model_file": "m.py"}'}, "trust_remote_code"),
    ],
)
def test_what_cannot_be_served_is_refused_before_it_comes(
    files: Files, why: str, hub: FakeHub, env: dict[str, str], tmp_path: Path
) -> None:
    hub.repos["org/atlas"] = files
    done = run("pull", "org/atlas", at=tmp_path, env=env)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("org/atlas: it cannot be served: ")
    assert why in line
    assert hub.downloaded <= {"config.json"}


def test_a_gated_repo_says_how_to_log_in(hub: FakeHub, env: dict[str, str], tmp_path: Path) -> None:
    hub.failures["org/atlas"] = (403, "GatedRepo")
    done = run("pull", "org/atlas", at=tmp_path, env=env)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert f"accept its terms at {hub.url}/org/atlas" in line
    assert "hf auth login" in line


def test_without_a_network(env: dict[str, str], tmp_path: Path) -> None:
    done = run("pull", "org/atlas", at=tmp_path, env=env | {"HF_HUB_OFFLINE": "1"})
    assert done.returncode == 1
    assert done.stderr == "org/atlas: HF_HUB_OFFLINE is set; unset it to download\n"
    done = run("pull", "org/atlas", at=tmp_path, env=env | {"HF_ENDPOINT": "http://127.0.0.1:1"})
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "the Hub cannot be reached" in line


def test_a_disk_that_is_too_small_is_told_before_it_is_full(hub: FakeHub, env: dict[str, str], tmp_path: Path) -> None:
    hub.sizes["model.safetensors"] = 2**60
    done = run("pull", "org/atlas", at=tmp_path, env=env)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert " are to be downloaded, and the disk of the Hub cache has " in line
    assert "HF_HOME" in line
    assert hub.bytes_sent(BIG) == 0


def test_ctrl_c_keeps_what_is_there(cache: Path, hub: FakeHub, env: dict[str, str], tmp_path: Path) -> None:
    hub.gates[BIG] = 100_000
    words = []
    with start("pull", "org/atlas", at=tmp_path, env=env) as process:
        assert process.stderr is not None
        for line in process.stderr:
            # What it speaks of has been written.
            if not words:
                process.send_signal(signal.SIGINT)
            words.append(line.rstrip())
    assert process.returncode == 130, words
    assert words[0].endswith(" of 293.1 KiB")
    assert words[-1] == ("stopped: what has come of org/atlas stays, and the next pull goes on from there")
    assert len(words) <= 4, words
    (partial,) = cache.glob("models--org--atlas/blobs/*.incomplete")
    there = partial.stat().st_size
    assert there >= 32_000
    hub.open_gate(BIG)
    done = run("pull", "org/atlas", at=tmp_path, env=env)
    assert done.returncode == 0
    assert f"{format_bytes(there + len(MODEL['config.json']))} of it here already" in done.stdout
    assert (BIG, there) in hub.begun
    assert (snapshot(cache) / BIG).read_bytes() == MODEL[BIG]


def test_an_adapter_says_what_it_is_for(cache: Path, hub: FakeHub, env: dict[str, str], tmp_path: Path) -> None:
    hub.repos["me/pirate"] = dict(ADAPTER)
    done = run("pull", "me/pirate", at=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    assert "an adapter for org/atlas" in done.stdout
    assert done.stdout.splitlines()[-1] == (
        f"next: in a roster, at its model, adapters: {{NAME: {snapshot(cache, 'me/pirate')}}}"
    )
    assert hub.downloaded == {"adapter_config.json", "adapter_model.safetensors"}


ROSTER = """
models:
  a: {source: org/atlas, aliases: [gpt-4o], draft: {model: org/mini}}
  local: {source: ./here}
"""


def test_models_by_the_names_that_a_roster_has(cache: Path, hub: FakeHub, env: dict[str, str], tmp_path: Path) -> None:
    hub.repos["org/mini"] = dict(MODEL)
    (tmp_path / "roster.yaml").write_text(ROSTER)
    done = run("pull", "gpt-4o", at=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "next: mlx-roster serve"
    assert (snapshot(cache) / BIG).is_file()
    assert (snapshot(cache, "org/mini") / BIG).is_file()
    every = json.loads(run("pull", "--all", "--json", at=tmp_path, env=env).stdout)
    assert [one["repo"] for one in every["pulled"]] == ["org/atlas", "org/mini"]
    done = run("pull", "local", at=tmp_path, env=env)
    assert (done.returncode, done.stderr) == (2, "local is a folder of this machine: there is nothing to pull\n")
    done = run("pull", "atlsa", at=tmp_path, env=env)
    assert done.returncode == 2
    assert "has no model of that name" in done.stderr


def test_what_never_fits_is_said_before_it_comes(hub: FakeHub, env: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "roster.yaml").write_text("memory: {budget: 100KiB}\nmodels: {a: {source: org/atlas}}")
    hub.gates[BIG] = 1
    with start("pull", "a", at=tmp_path, env=env) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        hub.wait_held(BIG)
        process.send_signal(signal.SIGINT)
    assert first.endswith("it takes about 322.3 KiB once loaded and never fits: the budget is 100 KiB\n")


def test_what_to_pull_must_be_said(env: dict[str, str], tmp_path: Path) -> None:
    assert run("pull", at=tmp_path, env=env).returncode == 2
    assert run("pull", "org/atlas", "--all", at=tmp_path, env=env).returncode == 2
    for words in (["--all"], ["atlas"]):
        done = run("pull", *words, at=tmp_path, env=env)
        assert done.returncode == 2
        assert "no roster file here" in done.stderr


def test_a_roster_that_cannot_be_read_is_in_nobodys_way(env: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "roster.yaml").write_text("models: {a: {sorce: x}}")
    assert run("pull", "org/atlas", at=tmp_path, env=env).returncode == 0
    done = run("pull", "--all", at=tmp_path, env=env)
    assert done.returncode == 2
    assert "sorce" in done.stderr
