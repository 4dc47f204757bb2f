"""What mkdocs does not do by itself, so that docs/ is the same pages on GitHub and on the site.

Links that leave docs/ lead to the repository, but for the changelog's, which is a page of the site: it lies at the
root, where everybody looks for it. A short name goes on no other line, and a long one in a table does between its
words.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

REPOSITORY = "https://github.com/mlx-roster/mlx-roster"
CHANGELOG = "changelog.md"

_ROOT = Path(__file__).parents[1]
_FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_ROW = re.compile(r"^\|.*$", re.MULTILINE)
_CODE = re.compile(r"`[^`\n]*`")
_LINK = re.compile(r"(?<=\]\()([^)\s]+)(?=\))")
_CELL = re.compile(r"<td.*?</td>", re.DOTALL)
_NAME = re.compile(r"(<code[^>]*>)([^<]*)(?=</code>)")
_BREAK = re.compile(r"(?<=[_./:])(?=[^\W\d]|\{)")
#: Code that fits beside a phone's other columns.
_SHORT = re.compile(r"<code>(?=[^<\n]{1,24}</code>)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the changelog to the site's pages."""
    from mkdocs.structure.files import File

    files.append(File.generated(config, CHANGELOG, content=changelog()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    return rewrite(markdown)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    return broken(html)


def changelog() -> str:
    """CHANGELOG.md as it would have to be written in docs/."""
    text = (_ROOT / "CHANGELOG.md").read_text()
    return _LINK.sub(lambda link: _from_root(link[1]), text)


def rewrite(markdown: str) -> str:
    """`markdown` with links that leave docs/ changed to where the site has what they mean. Code stays as it is."""
    parts: list[str] = []
    end = 0
    for block in _FENCED.finditer(markdown):
        parts += (_prose(markdown[end : block.start()]), block[0])
        end = block.end()
    return "".join((*parts, _prose(markdown[end:])))


def broken(html: str) -> str:
    """`html` with its inline code marked for docs/site.css: what stays whole, and where in tables it may break."""
    marked = _SHORT.sub('<code class="whole">', html)
    return _CELL.sub(lambda cell: _NAME.sub(lambda name: name[1] + _BREAK.sub("<wbr>", name[2]), cell[0]), marked)


def _prose(text: str) -> str:
    # GitHub wants a pipe in a table escaped even where it is code, and Python's Markdown shows the backslash then.
    rows = _ROW.sub(lambda row: _CODE.sub(lambda code: code[0].replace(r"\|", "|"), row[0]), text)
    return _LINK.sub(_outward, rows)


def _outward(link: re.Match[str]) -> str:
    target = link[1]
    if not target.startswith("../"):
        return target
    path = target.removeprefix("../")
    if path == "CHANGELOG.md":
        return CHANGELOG
    return f"{REPOSITORY}/{'tree' if path.endswith('/') else 'blob'}/main/{path}"


def _from_root(target: str) -> str:
    if ":" in target or target.startswith("#"):
        return target
    return target.removeprefix("docs/") if target.startswith("docs/") else f"../{target}"
