"""`opencode`, npm's, with the settings in examples/: a file is written by the tool that the model calls."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.clients.conftest import ROOT, saw
from tests.clients.said import GREETING, HELLO

CLIENTS: list[str] = []

PACKAGES = Path(__file__).parent / "opencode" / "node_modules"


def program() -> str:
    """npm installs a build for this system, and a second one for old processors; the first that runs will do."""
    for found in sorted(PACKAGES.glob("opencode-*/bin/opencode")):
        if subprocess.run([found, "--version"], capture_output=True, check=False).returncode == 0:
            return str(found)
    pytest.fail("no build of opencode runs here")


def test_writes_a_file(url: str, tmp_path: Path, record_property: pytest.RecordProperty) -> None:
    version = json.loads((PACKAGES / "opencode-ai" / "package.json").read_text())["version"]
    saw("npm opencode-ai", version)
    record_property("npm opencode-ai", version)
    project = tmp_path / "project"
    project.mkdir()
    (project / "hello.py").write_text(HELLO)
    subprocess.run(["git", "init", "--quiet"], cwd=project, check=True)
    text = (ROOT / "examples" / "coding" / "opencode.json").read_text()
    # Only where the server is, and the models that know this one task, are others here.
    for there, here in {"coder": "writer", "small": "committer", "http://127.0.0.1:8080/v1": url}.items():
        text = text.replace(there, here)
    (project / "opencode.json").write_text(text)
    # It asks the shell where it is, and takes any provider that there is a key for.
    environment = {name: value for name, value in os.environ.items() if name != "OPENAI_API_KEY"}
    environment |= {"HOME": str(tmp_path), "PWD": str(project), "OPENCODE_DISABLE_MODELS_FETCH": "1"}
    done = subprocess.run(
        [program(), "run", "Greet by name, in a new file if need be."],
        cwd=project,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert "It greets by name now." in said
    assert (project / "hello.py").read_text() == GREETING, said
