"""docs/clients.md names the versions that are tested."""

from __future__ import annotations

import importlib.metadata
import json
import re

import pytest

from tests.clients.conftest import ROOT

CLIENTS: list[str] = []

TABLE = (ROOT / "docs" / "clients.md").read_text()
NPM = {
    name: version
    for folder in ("js", "opencode")
    for name, version in json.loads((ROOT / "tests/clients" / folder / "package.json").read_text())[
        "dependencies"
    ].items()
}


#: Where a client is distributed under another name.
DISTRIBUTIONS = {"pydantic-ai": "pydantic-ai-slim"}

ROWS = re.findall(r"^\| \[`([\w-]+)`\]\(#[\w-]+\)(?: \(Python\))? \| (\S+) \|", TABLE, re.MULTILINE)


@pytest.mark.parametrize(("name", "stated"), ROWS)
def test_versions(name: str, stated: str) -> None:
    if name == "aider":
        assert f"AIDER_VERSION := {stated}\n" in (ROOT / "Makefile").read_text()
    else:
        assert importlib.metadata.version(DISTRIBUTIONS.get(name, name)) == stated


def test_versions_of_npm() -> None:
    assert f"(npm) | {NPM['openai']} |" in TABLE
    assert f"(npm) | {NPM['opencode-ai']} |" in TABLE
    assert f"(npm) | {NPM['ai']}, {NPM['@ai-sdk/openai-compatible']} |" in TABLE
