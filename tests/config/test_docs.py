"""docs/config.md against the settings themselves: every key is in its section's table, with its default."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from mlx_roster.config import (
    AdapterEntry,
    AuthSettings,
    Defaults,
    DiscoverSettings,
    DraftEntry,
    KeyEntry,
    KvSettings,
    LogSettings,
    MemorySettings,
    ModelEntry,
    PromptCacheSettings,
    Roster,
    SchedulingSettings,
    ServerSettings,
    UnlistedSettings,
)
from mlx_roster.config.load import parse
from mlx_roster.config.schema import json_schema
from scripts import roster_tables

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/config.md").read_text()

SECTIONS: dict[str, type[BaseModel]] = {
    "Top level": Roster,
    "server": ServerSettings,
    "auth": AuthSettings,
    "auth.keys": KeyEntry,
    "memory": MemorySettings,
    "scheduling": SchedulingSettings,
    "logs": LogSettings,
    "defaults": Defaults,
    "unlisted": UnlistedSettings,
    "discover": DiscoverSettings,
    "models.NAME": ModelEntry,
    "models.NAME.prompt_cache": PromptCacheSettings,
    "models.NAME.kv": KvSettings,
    "models.NAME.draft": DraftEntry,
    "models.NAME.adapters.NAME": AdapterEntry,
}


def section(title: str) -> str:
    text: str
    (text,) = re.findall(rf"^## {re.escape(title)}$(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL)
    return text


def rows(title: str) -> list[tuple[str, str, str]]:
    """Key, default and meaning of each row of the table in a section."""
    return re.findall(r"^\| `(\w+)` \| (.+?) \| (.+?) \|$", section(title), re.MULTILINE)


def written(field: FieldInfo) -> str:
    """A default as the tables have it."""
    if field.is_required():
        return "required"
    default: object = field.get_default(call_default_factory=True)
    if default is None or default == {}:
        return "none"
    if isinstance(default, BaseModel):
        return "a section"
    return f"`{default if isinstance(default, str) else json.dumps(default)}`"


@pytest.mark.parametrize("title", SECTIONS)
def test_every_key_is_there_with_its_default(title: str) -> None:
    expected = [(key, written(field)) for key, field in SECTIONS[title].model_fields.items()]
    found = [(key, re.sub(r"^\[(below|above)\]\(#\w+\)$", "a section", default)) for key, default, _ in rows(title)]
    assert found == expected


def test_the_tables_are_what_the_schema_says() -> None:
    assert roster_tables.page(TEXT) == TEXT, "make schema"


def test_every_section_of_the_schema_is_there() -> None:
    schemas = {name for name, schema in json_schema()["$defs"].items() if "properties" in schema}
    assert {model.__name__ for model in SECTIONS.values()} == schemas | {"Roster"}


def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)]+)\)", TEXT)
    assert links
    for link in links:
        path, _, anchor = link.partition("#")
        page = ROOT / "docs" / (path or "config.md")
        assert page.exists(), link
        titles = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE) if anchor else []
        assert anchor in {"", *(re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles)}, link


def test_the_example_in_it_is_a_roster(tmp_path: Path) -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    assert parse(example, name="docs/config.md", base=tmp_path).models


def keys(value: object, path: tuple[str, ...] = ()) -> set[tuple[str, ...]]:
    """Every key below `value`, with the names of models and adapters taken out."""
    found: set[tuple[str, ...]] = set()
    for child in value if isinstance(value, list) else ():
        found |= keys(child, path)
    for key, child in value.items() if isinstance(value, dict) else ():
        place = (*path, key if not path or path[-1] not in ("models", "adapters") else "NAME")
        found |= {place} | keys(child, place)
    return found


def test_the_full_example_has_every_key() -> None:
    has = keys(yaml.safe_load((ROOT / "examples/full.yaml").read_text()))
    for title, model in SECTIONS.items():
        place = () if title == "Top level" else tuple(title.split("."))
        assert {key[-1] for key in has if key[:-1] == place} == set(model.model_fields), title
