"""What a shell hears from the command when somebody presses Tab."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.processes import environment, run
from tests.cli.terminal import sitting_at
from tests.server.harness import running
from tests.serving import PATIENCE

#: The command as it is installed: what it is called decides which variable it listens to.
COMMAND = Path(sys.executable).with_name("mlx-roster")

ROSTER = """
models:
  atlas: {source: ./a, aliases: [gpt-4o], adapters: {pirate: ./p, french: {source: ./f, aliases: [atlas-fr]}}}
  scribe: {source: ./s, aliases: {fast: {temperature: 0}}}
"""


def bash(line: str) -> dict[str, str]:
    return {"_MLX_ROSTER_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}


def split(line: str) -> dict[str, str]:
    """What bash itself makes of `line`: with its own COMP_WORDBREAKS, a colon is a word."""
    words = line.replace(":", " : ").removesuffix(" " if line.endswith(":") else "").split(" ")
    return {"_MLX_ROSTER_COMPLETE": "complete_bash", "COMP_WORDS": "\n".join(words), "COMP_CWORD": str(len(words) - 1)}


def zsh(line: str) -> dict[str, str]:
    return {"_MLX_ROSTER_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": line}


def fish(line: str) -> dict[str, str]:
    return {
        "_MLX_ROSTER_COMPLETE": "complete_fish",
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
        "_TYPER_COMPLETE_ARGS": line,
    }


def tab(shell: Callable[[str], dict[str, str]], line: str, at: Path, **more: str) -> str:
    """What the shell is answered; never anything on standard error."""
    done = subprocess.run(
        [str(COMMAND)],
        cwd=at,
        env=environment(at / "hub", MLX_ROSTER_URL="http://127.0.0.1:1") | shell(line) | more,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert done.stderr == ""
    return done.stdout


def test_names_come_from_the_roster_where_no_server_runs(tmp_path: Path) -> None:
    (tmp_path / "roster.yaml").write_text(ROSTER)
    assert tab(bash, "mlx-roster load ", tmp_path).split() == ["atlas", "atlas-fr", "fast", "gpt-4o", "scribe"]
    assert tab(bash, "mlx-roster pin s", tmp_path).split() == ["scribe"]
    assert tab(bash, "mlx-roster unload a", tmp_path).split() == ["atlas", "atlas-fr"]
    assert tab(bash, "mlx-roster pull --roster roster.yaml gpt", tmp_path).split() == ["gpt-4o"]


def test_names_come_from_the_server_that_runs(tmp_path: Path) -> None:
    (tmp_path / "roster.yaml").write_text("models: {other: {source: ./o}}")
    with running() as server:
        names = tab(bash, "mlx-roster load ", tmp_path, MLX_ROSTER_URL=f"{server.url}/v1").split()
        assert names == ["atlas", "captain", "gpt-4o", "org/scribe"]
        assert tab(bash, f"mlx-roster load --url {server.url} g", tmp_path).split() == ["gpt-4o"]


def test_a_server_with_keys_is_asked_with_the_users_own(tmp_path: Path) -> None:
    (tmp_path / "roster.yaml").write_text("models: {other: {source: ./o}}")
    key = "a-key-of-some-length"
    with running(auth={"keys": [{"name": "me", "key": key, "models": ["org/*"]}]}) as server:
        assert tab(bash, "mlx-roster load ", tmp_path, MLX_ROSTER_URL=server.url).split() == ["other"]
        more = {"MLX_ROSTER_URL": server.url, "MLX_ROSTER_KEY": key}
        assert tab(bash, "mlx-roster chat ", tmp_path, **more).split() == ["org/scribe"]


@pytest.mark.parametrize(
    "roster",
    ["models: [1, 2]", "models:", "a: [", "\x00", "models: {1: {aliases: 3}}", "models: &a {x: *a}", "[" * 10_000],
)
def test_what_cannot_be_read_is_no_news(roster: str, tmp_path: Path) -> None:
    (tmp_path / "roster.yaml").write_text(roster)
    tab(bash, "mlx-roster load ", tmp_path)


@pytest.mark.parametrize("url", ["http://[", "ftp://x", "http://127.0.0.1:99999", "https://127.0.0.1:1", "\x7f"])
def test_a_url_that_is_none_is_no_news(url: str, tmp_path: Path) -> None:
    assert tab(bash, "mlx-roster load ", tmp_path, MLX_ROSTER_URL=url).strip() == ""


@pytest.mark.parametrize("shell", [bash, zsh, fish], ids=["bash", "zsh", "fish"])
def test_a_name_that_a_shell_might_obey_is_not_offered(shell: Callable[[str], dict[str, str]], tmp_path: Path) -> None:
    names = [
        "evil\\`touch,here`",
        "evil`x`",
        'evil"',
        "evil'",
        "evil;x",
        "evil&x",
        "evil>x",
        "evil(x)",
        "evil*",
        "evil\\",
    ]
    models = {name: {"source": "./a"} for name in [*names, "évil/org.v2_é+1"]}
    (tmp_path / "roster.yaml").write_text(json.dumps({"models": models}))
    assert "evil" not in tab(shell, "mlx-roster load e", tmp_path)
    assert "évil/org.v2_é+1" in tab(shell, "mlx-roster load é", tmp_path)


def test_every_shell_is_answered_in_its_own_words(tmp_path: Path) -> None:
    (tmp_path / "roster.yaml").write_text(ROSTER)
    assert tab(zsh, "mlx-roster load sc", tmp_path).strip() == """_arguments '*: :(("scribe"))'"""
    assert tab(fish, "mlx-roster load sc", tmp_path).strip() == "scribe"
    assert tab(bash, "mlx-roster unl", tmp_path).strip() == "unload"
    assert {"init", "pull", "serve"} <= set(tab(bash, "mlx-roster ", tmp_path).split())
    assert "--watch" in tab(bash, "mlx-roster serve --", tmp_path).split()


@pytest.mark.parametrize(
    ("shell", "words"),
    [("bash", "complete -o default -F"), ("zsh", "#compdef mlx-roster"), ("fish", "complete --command mlx-roster")],
)
def test_each_shell_is_given_its_script(shell: str, words: str, tmp_path: Path) -> None:
    env = environment(tmp_path / "hub", _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    done = run("--show-completion", shell, at=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    assert words in done.stdout
    done = run("--install-completion", shell, at=tmp_path, env=env | {"SHELL": f"/bin/{shell}"})
    assert done.returncode == 0, done.stderr
    assert any(words in path.read_text() for path in tmp_path.rglob("*") if path.is_file())


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_a_real_bash_completes(tmp_path: Path) -> None:
    (tmp_path / "roster.yaml").write_text(ROSTER)
    env = environment(tmp_path / "hub", MLX_ROSTER_URL="http://127.0.0.1:1")
    env["PATH"] = f"{COMMAND.parent}{os.pathsep}{env['PATH']}"
    env["_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION"] = "1"
    script = run("--show-completion", "bash", at=tmp_path, env=env).stdout
    press = 'COMP_WORDS=(mlx-roster load sc) COMP_CWORD=2; _mlx_roster_completion mlx-roster; echo "${COMPREPLY[@]}"'
    done = subprocess.run(
        ["bash", "--norc", "-c", f"{script}\n{press}"],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert (done.stdout, done.stderr) == ("scribe\n", "")


@pytest.mark.skipif(shutil.which("fish") is None, reason="there is no fish")
def test_a_real_fish_completes(tmp_path: Path) -> None:
    (tmp_path / "roster.yaml").write_text(ROSTER)
    env = installed("fish", tmp_path)
    lines = ("mlx-roster load sc", "mlx-roster chat atlas:", "mlx-roster load nobody")
    done = subprocess.run(
        ["fish", "-c", "; echo; ".join(f"complete -C '{line}'" for line in lines)],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert (done.stdout, done.stderr) == ("scribe\n\natlas:french\natlas:pirate\n\n", "")


@pytest.mark.skipif(shutil.which("zsh") is None, reason="there is no zsh")
def test_a_real_zsh_completes(tmp_path: Path) -> None:
    (tmp_path / "roster.yaml").write_text(ROSTER)
    env = installed("zsh", tmp_path) | {"ZDOTDIR": str(tmp_path)}
    # -d: not what the system's administrator would have.
    with sitting_at(["zsh", "-d", "-i"], env | {"PS1": "READY> ", "TERM": "xterm"}, at=tmp_path) as terminal:
        if "insecure" in terminal.until(r"READY> |insecure .*\?"):  # folders of this machine's own
            terminal.press("y")
            terminal.until("READY> ")
        terminal.press("mlx-roster load sc\t")  # the first time is to be enough
        terminal.until("load scribe ")
        terminal.press("\x15mlx-roster chat atlas:p\t")
        terminal.until("chat atlas:pirate ")
        terminal.press("\x15mlx-roster chat atlas:\t")
        terminal.until("atlas:french +atlas:pirate")
        terminal.press("\x15exit\n")
        terminal.end()


def installed(shell: str, home: Path) -> dict[str, str]:
    """The environment of somebody with `shell` who has just had it complete the command."""
    env = environment(home / "hub", MLX_ROSTER_URL="http://127.0.0.1:1")
    env["PATH"] = f"{COMMAND.parent}{os.pathsep}{env['PATH']}"
    detected = {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1", "SHELL": f"/bin/{shell}"}
    done = run("--install-completion", shell, at=home, env=env | detected)
    assert done.returncode == 0, done.stderr
    return env


def test_bash_takes_an_adapter_for_a_word_of_its_own(tmp_path: Path) -> None:
    """It replaces what follows the colon, and no more."""
    (tmp_path / "roster.yaml").write_text(ROSTER)
    assert tab(split, "mlx-roster chat atlas:", tmp_path).split() == ["french", "pirate"]
    assert tab(split, "mlx-roster chat atlas:p", tmp_path).split() == ["pirate"]
    assert tab(split, "mlx-roster chat --url http://127.0.0.1:1 atlas:p", tmp_path).split() == ["pirate"]
    assert tab(split, "mlx-roster chat scr", tmp_path).split() == ["scribe"]
    assert tab(split, "mlx-roster chat ", tmp_path).split()[0] == "atlas"
    assert tab(split, "mlx-roster chat scribe:p", tmp_path).split() == []
    assert tab(split, "mlx-roster cha", tmp_path).split() == ["chat"]
