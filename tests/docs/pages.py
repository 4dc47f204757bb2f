"""What a Markdown page consists of, as far as these tests are concerned."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"

#: Stands before a block of YAML that is not for a roster file.
NO_ROSTER = "<!-- not a roster -->"

_FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_INLINE_LINK = re.compile(r"\]\(([^)\s]+)\)")
_REFERENCE = re.compile(r"^\[[^\]]+\]: (\S+)$", re.MULTILINE)
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block: `line` is that of the page where it begins, `note` the text just before it."""

    page: Path
    line: int
    language: str
    text: str
    note: str

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def pages() -> list[Path]:
    return [*sorted(DOCS.glob("*.md")), *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md"))]


@cache
def blocks(*languages: str) -> list[Block]:
    """Every fenced block of the pages in one of these languages."""
    return [block for page in pages() for block in _blocks(page) if block.language in languages]


def _blocks(page: Path) -> list[Block]:
    text = page.read_text()
    found = []
    for fence in _FENCE.finditer(text):
        before = text[: fence.start()]
        note = before.rstrip().rpartition("\n")[2]
        found.append(Block(page, before.count("\n") + 1, fence[2], fence[3], note))
    return found


@cache
def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return _FENCE.sub("", page.read_text())


def links(page: Path) -> list[str]:
    text = re.sub(r"`[^`\n]+`", "``", prose(page))
    return [*_INLINE_LINK.findall(text), *_REFERENCE.findall(text)]


@cache
def anchors(page: Path) -> frozenset[str]:
    """Of each heading, as GitHub makes them. The site's are the same, or its strict build says so."""
    slugs: list[str] = []
    for title in _HEADING.findall(prose(page)):
        plain = re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", title)
        slug = re.sub(r"[^\w -]", "", plain.lower()).strip().replace(" ", "-")
        slugs.append(f"{slug}-{slugs.count(slug)}" if slug in slugs else slug)
    return frozenset(slugs)


def code(page: Path) -> list[str]:
    """What stands between backticks in the text."""
    return re.findall(r"`([^`\n]+)`", prose(page))
