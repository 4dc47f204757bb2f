"""The tables of keys in docs/config.md, made of the roster file's JSON Schema: `python scripts/roster_tables.py`.

What a key means is said once, by the `description` of its field in `mlx_roster/config/`: editors show it through the
schema, and this page has it between two marks for each section. What is outside of the marks is written by hand.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from mlx_roster.config import values
from mlx_roster.config.schema import json_schema
from mlx_roster.config.units import DURATION_PATTERN, MULTIPLE_PATTERN, PERCENTAGE_PATTERN, SIZE_PATTERN

PAGE = Path(__file__).parents[1] / "docs" / "config.md"

#: Titles of the page's sections, and whose keys they have. The empty one is the schema itself.
SECTIONS = {
    "Top level": "",
    "server": "ServerSettings",
    "auth": "AuthSettings",
    "auth.keys": "KeyEntry",
    "memory": "MemorySettings",
    "scheduling": "SchedulingSettings",
    "logs": "LogSettings",
    "defaults": "Defaults",
    "unlisted": "UnlistedSettings",
    "discover": "DiscoverSettings",
    "models.NAME": "ModelEntry",
    "models.NAME.prompt_cache": "PromptCacheSettings",
    "models.NAME.kv": "KvSettings",
    "models.NAME.draft": "DraftEntry",
    "models.NAME.adapters.NAME": "AdapterEntry",
}

#: Where the page says more of a key than its description does.
MORE = {
    ("Top level", "generation_config"): "#defaults",
    ("Top level", "models"): "#modelsname",
    ("auth", "keys"): "#authkeys",
    ("server", "host"): "#auth",
    ("models.NAME", "source"): "sources.md",
    ("models.NAME", "aliases"): "#aliases",
    ("models.NAME", "trust_remote_code"): "sources.md#code-in-a-models-folder",
    ("models.NAME", "max_adapters"): "adapters.md",
    ("models.NAME", "draft"): "#modelsnamedraft",
    ("models.NAME", "adapters"): "#modelsnameadaptersname",
    ("models.NAME", "chat_template"): "#chat-templates",
    ("models.NAME", "chat_template_args"): "#chat-templates",
    ("models.NAME.adapters.NAME", "aliases"): "#aliases",
}

_PATTERNS = {
    SIZE_PATTERN: "a size",
    PERCENTAGE_PATTERN: "a percentage",
    DURATION_PATTERN: "a duration",
    MULTIPLE_PATTERN: "a multiple, `3x`",
    next(iter(json_schema()["properties"]["models"]["patternProperties"])): "a name",
    values.GLOB_PATTERN: "a glob",
    values.ORIGIN_PATTERN: "an origin",
    values.HOST_PATTERN: "a host name",
}
_PLURALS = {
    "a name": "names",
    "a glob": "globs",
    "an origin": "origins",
    "a host name": "host names",
    "a string": "strings",
    "keys": "mappings",
}
_BEGIN = "<!-- Made by scripts/roster_tables.py: a change belongs into the descriptions of mlx_roster/config/. -->"
_END = "<!-- As far as that. -->"
_CODE = re.compile(r'https?://[^\s,;]+|\[?"[^"]+"\]?|\b[a-z]+(?:[_.][a-z]+)+\b|\bx-roster-ignored\b')


def page(text: str) -> str:
    """`text`, the page, with its tables as they should be."""
    first, *sections = re.split(r"^(?=## )", text, flags=re.MULTILINE)
    titles = [section.partition("\n")[0].removeprefix("## ") for section in sections]
    if missing := [title for title in SECTIONS if title not in titles]:
        raise SystemExit(f"{PAGE.name} has no section {missing[0]}")
    return first + "".join(
        _renewed(title, section) if title in SECTIONS else section
        for title, section in zip(titles, sections, strict=True)
    )


def _renewed(title: str, section: str) -> str:
    before, begin, rest = section.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not (begin and end):
        raise SystemExit(f"the section {title} of {PAGE.name} has no place for its table")
    return f"{before}{_BEGIN}\n\n{table(title)}\n{_END}{after}"


def table(title: str) -> str:
    """The keys of a section, in the order in which the models have them."""
    schema = json_schema()
    section = schema["$defs"][SECTIONS[title]] if SECTIONS[title] else schema
    lines = ["| Key | Default | Takes | Meaning |", "|---|---|---|---|"]
    for key, about in section["properties"].items():
        cells = (f"`{key}`", _default(title, key, about, key in section.get("required", ())), _takes(about))
        lines.append(f"| {' | '.join(cells)} | {_meaning(title, key, about)} |")
    return "\n".join(lines) + "\n"


def _default(title: str, key: str, about: dict[str, Any], required: bool) -> str:
    if required:
        return "required"
    if "$ref" in about:
        anchor, where = _place(title, key)
        return f"[{where}](#{anchor})"
    value = about.get("default")
    return "none" if value is None else f"`{value if isinstance(value, str) else json.dumps(value)}`"


def _place(title: str, key: str) -> tuple[str, str]:
    """The section that says what may be below a key, and whether it is further down the page."""
    full = key if title == "Top level" or key == "defaults" else f"{title}.{key}"
    titles = list(SECTIONS)
    where = "above" if titles.index(full) < titles.index(title) else "below"
    return full.lower().replace(".", ""), where


def _meaning(title: str, key: str, about: dict[str, Any]) -> str:
    said = _CODE.sub(lambda found: f"`{found[0]}`", about["description"])
    more = MORE.get((title, key))
    return f"{said} [More]({more})" if more else said


def _takes(about: dict[str, Any]) -> str:
    """What may be written there. That each single value may come from the environment is said above the tables."""
    kinds = [_kind(each) for each in about.get("anyOf", [about]) if not _goes_without_saying(each)]
    if "a size" in kinds:
        # As a number, it is the same size in bytes; and so it is with durations and seconds.
        kinds = [kind for kind in kinds if not kind.startswith("an integer")]
    if "a duration" in kinds:
        kinds = [kind for kind in kinds if not kind.startswith("a number")]
    return " or ".join(kinds)


def _goes_without_saying(schema: dict[str, Any]) -> bool:
    return schema.get("type") == "null" or schema.get("$ref") == "#/$defs/Variable"


def _kind(schema: dict[str, Any]) -> str:
    if "const" in schema or "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    if "pattern" in schema:
        return _PATTERNS.get(schema["pattern"], "a string")
    match schema.get("type"):
        case "boolean":
            return "`true`, `false`"
        case "integer":
            return "an integer" + _range(schema)
        case "number":
            return "a number" + _range(schema)
        case "array":
            kind = _takes(schema["items"])
            return f"a list of {_PLURALS.get(kind, kind)}"
        case "string":
            return "a string"
        case "object":
            return "a mapping"
    return "keys"


def _range(schema: dict[str, Any]) -> str:
    least, most = schema.get("minimum", schema.get("exclusiveMinimum")), schema.get("maximum")
    if most == 2**31 - 1:
        most = None
    above = "above " if "exclusiveMinimum" in schema else ""
    if least is None:
        return ""
    if most is None:
        return f" {above or 'from '}{least}"
    return f", {above}{least} to {most}" if not above else f", above {least}, up to {most}"


if __name__ == "__main__":
    text = PAGE.read_text()
    if sys.argv[1:] == ["--check"]:
        raise SystemExit(text != page(text))
    PAGE.write_text(page(text))
