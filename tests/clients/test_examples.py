"""The scripts in examples/clients, as they are, against a running server."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.clients.conftest import ROOT

CLIENTS: list[str] = ["openai"]

CLIENT = ROOT / "examples" / "clients"
MODULES = Path(__file__).parent / "js" / "node_modules"

PLAIN, PIRATE = "The capital of France is Paris.", "Arr! The capital of France be Paris."


def run(url: str, *command: str) -> str:
    done = subprocess.run(command, env=os.environ | {"ROSTER_URL": url}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_python(url: str) -> None:
    listed, *said = run(url, sys.executable, str(CLIENT / "chat.py")).splitlines()
    assert "atlas:pirate" in listed
    assert said == [f"atlas: {PLAIN}", f"atlas:pirate: {PIRATE}"]


def test_javascript(url: str, tmp_path: Path) -> None:
    # Node looks for packages beside the script.
    (tmp_path / "node_modules").symlink_to(MODULES)
    script = shutil.copy(CLIENT / "chat.mjs", tmp_path)
    listed, *said = run(url, "node", script).splitlines()
    assert "atlas:pirate" in listed
    assert said == [f"atlas: {PLAIN}", f"atlas:pirate: {PIRATE}"]


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
def test_curl(url: str) -> None:
    listed, answer, stream = run(url, str(CLIENT / "chat.sh")).split("\n", 2)
    assert '"atlas:pirate"' in listed
    assert PLAIN in answer
    *events, done = [line.removeprefix("data: ") for line in stream.splitlines() if line.startswith("data: ")]
    deltas = [json.loads(event)["choices"][0]["delta"] for event in events]
    assert "".join(delta.get("content") or "" for delta in deltas) == PIRATE
    assert done == "[DONE]"
