"""npm's `openai` and `ai` packages, in scripts of their own."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.clients.conftest import saw

CLIENTS: list[str] = []

HERE = Path(__file__).parent / "js"


@pytest.mark.parametrize(
    ("script", "packages"), [("openai.mjs", ["openai"]), ("ai.mjs", ["ai", "@ai-sdk/openai-compatible"])]
)
def test_script(url: str, script: str, packages: list[str], record_property: pytest.RecordProperty) -> None:
    for name in packages:
        version = json.loads((HERE / "node_modules" / name / "package.json").read_text())["version"]
        saw(f"npm {name}", version)
        record_property(f"npm {name}", version)
    done = subprocess.run(
        ["node", script], cwd=HERE, env=os.environ | {"BASE_URL": url}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
