"""What a server that is ready tells whoever started it at a terminal to try."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.terminal import sitting_at
from tests.serving import PATIENCE

SCRIPT = Path(sys.executable).with_name("mlx-roster")


@pytest.mark.parametrize(
    ("command", "path", "called"),
    [
        ([str(SCRIPT)], os.defpath, str(SCRIPT)),
        ([str(SCRIPT)], f"{SCRIPT.parent}:{os.defpath}", "mlx-roster"),
        ([sys.executable, "-m", "mlx_roster"], os.defpath, f"{sys.executable} -m mlx_roster"),
    ],
)
def test_the_line_that_a_ready_server_shows_can_be_pasted(command: list[str], path: str, called: str) -> None:
    environment = {**os.environ, "TERM": "xterm-256color", "PATH": path}
    with sitting_at([*command, "demo", "--port", "0"], environment) as terminal:
        line = terminal.until(r"(?s)another terminal:\n.*?--url \S+").splitlines()[-1]
        assert line.strip().startswith(f"{called} chat atlas:pirate ")
        done = subprocess.run(
            shlex.split(line),
            env={**environment, "PATH": f"{SCRIPT.parent}:{path}"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
    assert (done.returncode, done.stderr) == (0, "")
    assert "Lima" in done.stdout
