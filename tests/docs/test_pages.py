"""What the pages show is what there is: links lead somewhere, files are right, commands and keys exist."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import re
import shlex
from pathlib import Path

import pytest
import typer
import yaml
from pydantic import BaseModel

from mlx_roster.cli import app
from mlx_roster.config import Roster
from mlx_roster.config.load import load, parse
from tests.docs.pages import DOCS, NO_ROSTER, ROOT, Block, anchors, blocks, code, links, pages, prose

COMMAND = typer.main.get_command(app)


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in links(page):
        if "://" in link or link.startswith("mailto:"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert target.is_relative_to(ROOT), link
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), link


def test_there_is_something_to_check() -> None:
    assert len(pages()) > 15
    assert len(blocks("yaml")) > 5
    assert len(blocks("console", "sh", "bash")) > 10


@pytest.mark.parametrize("block", blocks("yaml", "yml"), ids=str)
def test_every_yaml_is_of_a_roster(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if block.note == NO_ROSTER:
        yaml.safe_load(block.text)
        return
    for name in re.findall(r"\$\{(\w+)", block.text):
        monkeypatch.setenv(name, hashlib.sha256(name.encode()).hexdigest())
    # A part of a roster is right if it would be in one with a model; what is not of a roster has to say so.
    rest = (
        "" if re.search(r"^(models|discover|unlisted):", block.text, re.MULTILINE) else "\nmodels: {m: {source: ./m}}\n"
    )
    parse(block.text + rest, name=str(block), base=tmp_path)


@pytest.mark.parametrize("roster", sorted((ROOT / "examples").rglob("*.yaml")), ids=lambda path: path.name)
def test_every_roster_of_the_examples_is_one(roster: Path) -> None:
    text = roster.read_text()
    if "roster.schema.json" in text.partition("\n")[0]:
        load(roster)
    else:
        assert roster.parent.name == "monitoring"
        assert list(yaml.safe_load_all(text))


def test_every_example_is_named() -> None:
    linked = {
        link.rpartition("examples/")[2].rstrip("/") for page in pages() for link in links(page) if "examples/" in link
    }
    there = {path.name for path in (ROOT / "examples").iterdir()} - {"templates"}  # full.yaml has that
    assert {name for name in there if not any(link.startswith(name) for link in linked)} == set()


@pytest.mark.parametrize("block", blocks("json"), ids=str)
def test_every_json_is_json(block: Block) -> None:
    json.loads(block.text)


@pytest.mark.parametrize("block", blocks("python", "py"), ids=str)
def test_every_python_compiles(block: Block) -> None:
    compile(block.text, str(block), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


def commands() -> list[tuple[str, str]]:
    """Every command line of `mlx-roster` that a page has, and where: after a prompt, or between backticks."""
    shown = [
        (str(block), line)
        for block in blocks("console", "sh", "bash")
        for line in re.sub(r"\\\n\s*", " ", block.text).splitlines()
        if line.startswith("$ ")
    ]
    shown += [(page.name, words) for page in pages() for words in code(page)]
    return [
        (where, found[1])
        for where, line in shown
        for found in re.finditer(r"(?:^|[\s/(&])mlx-roster( [^|;&>#]*)?", line)
        if found[1] and not re.search(r"git clone|#egg|pip install", line)
    ]


@pytest.mark.parametrize(("where", "line"), sorted(set(commands())))
def test_every_command_line_is_one(where: str, line: str) -> None:
    words = [word.strip("[](),") for word in shlex.split(line.replace("…", "").replace("[", " ").replace("]", " "))]
    context = COMMAND.make_context("mlx-roster", [], resilient_parsing=True)
    command = COMMAND
    # `ps`, `load` stands for one of them; COMMAND for any.
    if words and not words[0].startswith("-"):
        name = words.pop(0)
        if name == "COMMAND":
            return
        found = COMMAND.get_command(context, name)
        assert found is not None, name
        command = found
    known = {option for param in command.params for option in (*param.opts, *param.secondary_opts)} | {"--help", "-h"}
    used = {word.partition("=")[0] for word in words if re.match(r"-{1,2}[a-z]", word)}
    assert used <= known


def test_every_key_is_named_as_it_is() -> None:
    """`scheduling.ttl` and the like, wherever a page says it."""
    sections = {
        name: field.annotation
        for name, field in Roster.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
    }
    wrong = [
        (page.name, words)
        for page in pages()
        for words in code(page)
        if (found := re.match(r"(\w+)\.(\w+)(?![\w(/])", words))
        and (section := sections.get(found[1])) is not None
        and found[2] not in section.model_fields
        and not words.endswith((".py", ".yaml", ".md", ".json"))
    ]
    assert wrong == []


def _sources(folder: Path) -> str:
    return "\n".join(path.read_text() for path in folder.rglob("*.py"))


def test_environment_variables() -> None:
    ours, said = (
        _sources(ROOT / "mlx_roster"),
        {word for page in pages() for word in re.findall(r"\w+", page.read_text())},
    )
    names = re.compile(r"\bMLX_ROSTER_[A-Z_]+\b")
    there = set(names.findall(ours))
    assert {name for name in said if names.fullmatch(name)} == there
    hub = importlib.util.find_spec("huggingface_hub")
    assert hub is not None
    assert hub.origin is not None
    theirs = _sources(Path(hub.origin).parent)
    assert [name for name in said if re.fullmatch(r"HF_[A-Z_]+", name) and name not in theirs] == []


def test_moving_names_every_flag_of_mlx_lms_server() -> None:
    spec = importlib.util.find_spec("mlx_lm")
    assert spec is not None
    assert spec.origin is not None
    flags = re.findall(r'^ +"(--[a-z-]+)",$', (Path(spec.origin).parent / "server.py").read_text(), re.MULTILINE)
    assert len(flags) > 20
    page = (DOCS / "moving.md").read_text()
    assert [flag for flag in flags if f"`{flag}`" not in page] == []


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) < 150


def test_no_page_is_a_stub() -> None:
    assert [page.name for page in pages() if len(prose(page).split()) < 60] == []
