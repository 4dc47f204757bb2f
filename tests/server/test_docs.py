"""The pages on HTTP name everything that there is."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from mlx_roster.registry.overview import Change, Memory, ModelBytes, ModelStatus, Overview, Preloads, Reload
from mlx_roster.server.access import RULES, Rule
from mlx_roster.server.errors import ANSWERS
from mlx_roster.server.openai.fields import INERT, REFUSED
from mlx_roster.server.openai.schema import ChatRequest, TextRequest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("code", sorted({cls.code for cls in ANSWERS}))
def test_every_error_code(code: str) -> None:
    assert f"`{code}`" in (DOCS / "api.md").read_text()


#: What the page on security says of who may ask for a route, with keys and without.
SAID = {
    Rule.PUBLIC: ("anybody; models are named to `admin`", "anybody"),
    Rule.KEY: ("any key", "anybody"),
    Rule.INFER: ("`infer`, and the models of the key", "anybody"),
    Rule.OPERATE: ("`admin`", "anybody"),
    Rule.ADMIN: ("`admin`, from anywhere", "[this machine](admin.md)"),
}


def test_every_route_and_its_rule() -> None:
    rows = re.findall(r"^\| (`/.*) \| (.+) \| (.+) \|$", (DOCS / "security.md").read_text(), re.MULTILINE)
    written = {route: tuple(said) for routes, *said in rows for route in re.findall("`([^`]+)`", routes)}
    assert written == {path.replace("{id:path}", "{id}"): SAID[rule] for path, rule in RULES.items()}


@pytest.mark.parametrize("shape", [ChatRequest, TextRequest])
def test_every_field_of_a_request(shape: type[ChatRequest | TextRequest]) -> None:
    page = (DOCS / "api.md").read_text()
    assert [name for name in (*shape.model_fields, *INERT, *REFUSED) if f"`{name}`" not in page] == []


@pytest.mark.parametrize("shape", [Overview, Memory, Preloads, Reload, ModelStatus, ModelBytes, Change])
def test_every_field_of_the_status(shape: type) -> None:
    page = (DOCS / "admin.md").read_text()
    assert [field.name for field in fields(shape) if f"`{field.name}`" not in page] == []
