"""The pictures are what their scripts make, and show nothing of the machine that made them."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from xml.etree import ElementTree

import pytest

from scripts import draw_architecture
from scripts.make_picture import ASKED
from tests.docs.pages import DOCS, ROOT

PICTURES = sorted((DOCS / "images").glob("*.svg"))


def test_the_diagram_is_what_the_script_draws() -> None:
    drawn = draw_architecture.picture()
    assert draw_architecture.PICTURE.read_text() == drawn, "python scripts/draw_architecture.py"


@pytest.mark.parametrize("picture", PICTURES, ids=lambda picture: picture.name)
def test_a_picture_asks_nobody_for_anything(picture: Path) -> None:
    text = picture.read_text()
    assert ElementTree.fromstring(text).tag.endswith("svg")
    assert not re.search(r"""(href|src)=|url\(["']?\w+:|@import|@font-face""", text)


def test_the_terminal_shows_what_was_asked() -> None:
    tree = ElementTree.parse(DOCS / "images" / "demo.svg")
    rows: dict[str, str] = {}
    for part in tree.iter("{http://www.w3.org/2000/svg}text"):
        rows[part.get("y", "")] = rows.get(part.get("y", ""), "") + (part.text or "")
    shown = "\n".join(rows.values()).replace("\xa0", " ")
    for words in ASKED:
        assert f"mlx-roster {words[0]} {words[1] if len(words) > 1 else ''}".strip() in shown
    assert "Arr! The capital of France be Paris." in shown
    assert "THE OPPOSITE OF HOT IS COLD." in shown
    assert re.search(r"^atlas +ready ", shown, re.MULTILINE)
    assert not re.search(r"(?<![/\w.])/(work|root|home|Users|tmp|opt|usr)\b|Error|Traceback", shown)


def test_the_layers_are_those_that_are_checked() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = (contract["layers"] for contract in contracts if contract["type"] == "layers")
    said = " \u203a ".join(", ".join(f"`{name.strip()}`" for name in layer.split("|")) for layer in layers)
    assert said in (DOCS / "architecture.md").read_text(), said
