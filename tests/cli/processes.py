"""The command in processes of its own: on pipes, or on a terminal."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.serving import PATIENCE, interruptible

#: Variables that would tell a command where things are on the machine that runs the tests.
_OURS = ("HOST", "PORT", "MLX_ROSTER_URL", "MLX_ROSTER_KEY", "HF_TOKEN", "HF_HUB_OFFLINE", "COLUMNS", "NO_COLOR")


def environment(cache: Path, **more: str) -> dict[str, str]:
    """That of somebody whose Hub cache is `cache`, and whose home is beside it."""
    inherited = {key: value for key, value in os.environ.items() if key not in _OURS}
    home = str(cache.parent)
    return inherited | {"HF_HUB_CACHE": str(cache), "HOME": home, "XDG_CONFIG_HOME": f"{home}/.config"} | more


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "mlx_roster", *arguments]


def run(*arguments: str, at: Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), cwd=at, env=env, capture_output=True, text=True, check=False, timeout=PATIENCE
    )


def start(*arguments: str, at: Path, env: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(*arguments),
        cwd=at,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=interruptible,
    )


def on_terminal(
    *arguments: str,
    at: Path,
    env: dict[str, str],
    columns: int = 80,
    when: str | None = None,
    then: Callable[[], object] = lambda: None,
) -> tuple[int, str]:
    """The exit status, and all that a terminal of that width was sent. Once that has `when` in it, `then` is called."""
    ours, theirs = pty.openpty()
    try:
        child = subprocess.Popen(
            command(*arguments),
            cwd=at,
            env=env | {"COLUMNS": str(columns), "TERM": "xterm"},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        )
    finally:
        os.close(theirs)
    seen = b""
    try:
        while chunk := _read(ours):
            seen += chunk
            if when is not None and when.encode() in seen:
                when = None
                then()
        assert when is None, f"{when!r} was not shown: {seen!r}"
        return child.wait(PATIENCE), seen.decode(errors="replace")
    finally:
        os.close(ours)
        child.kill()
        child.wait()


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # Linux's way to say that nobody has it open any more
        return b""
