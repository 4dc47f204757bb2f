"""The site: every page is in it, and a reader's browser asks nobody else for anything."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from scripts.site_hooks import broken, rewrite
from tests.docs.pages import DOCS, ROOT


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    # Not --quiet: it keeps warnings from being counted, and nothing is strict then.
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return folder


class Page(HTMLParser):
    """What a browser loads by itself when it shows a page, and where the links of its menu lead."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.menu: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        said = {name: value or "" for name, value in attrs}
        if tag == "a":
            if "md-nav__link" in said.get("class", ""):
                self.menu.append(said.get("href", ""))
        elif tag == "link" and said.get("rel") not in ("canonical", "next", "prev"):
            self.loads.append(said.get("href", ""))
        elif "src" in said:
            self.loads.append(said["src"])


def test_every_page_is_in_its_menu(site: Path) -> None:
    menu = {link.partition("#")[0] for link in Page((site / "index.html").read_text()).menu}
    pages = {f"{page.stem}.html" for page in DOCS.glob("*.md")} | {"changelog.html"}
    assert menu >= pages
    assert {path.name for path in site.glob("*.html")} == pages | {"404.html"}


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    for path in site.rglob("*.html"):
        for loaded in Page(path.read_text()).loads:
            assert not re.match(r"(\w+:)?//", loaded), (path.name, loaded)
            if path.name != "404.html":
                assert (path.parent / loaded.partition("?")[0]).exists(), (path.name, loaded)
    for path in site.rglob("*.css"):
        assert not re.search(r"url\(\s*[\"']?(https?:)?//", path.read_text()), path.name


def test_nothing_makes_the_theme_ask_somebody(site: Path) -> None:
    """Its script would load mermaid for a diagram in a page, and ask GitHub and GitLab about a repository's stars."""
    for path in site.rglob("*.html"):
        text = path.read_text()
        assert 'class="mermaid"' not in text
        assert 'data-md-component="source"' not in text


def test_links_out_of_the_docs() -> None:
    text = "[a](../examples/full.yaml) [b](../CHANGELOG.md) [c](api.md#errors) [d](../examples/)\n```\n[e](../f)\n```\n"
    repository = "https://github.com/mlx-roster/mlx-roster"
    assert rewrite(text) == (
        f"[a]({repository}/blob/main/examples/full.yaml) [b](changelog.md) [c](api.md#errors) "
        f"[d]({repository}/tree/main/examples/)\n```\n[e](../f)\n```\n"
    )


def test_pipes_in_tables() -> None:
    assert rewrite("| `a\\|b` | c \\| d |\n") == "| `a|b` | c \\| d |\n"


def test_where_names_may_break() -> None:
    """Between their words, in tables; a short one nowhere. Blocks stay as they are."""
    name = "mlx_roster_request_errors_total"
    parted = name.replace("_", "_<wbr>")
    assert broken(f"<p><code>--json</code></p><td><code>{name}</code></td>") == (
        f'<p><code class="whole">--json</code></p><td><code>{parted}</code></td>'
    )
    assert broken("<td><code>top_k</code></td>") == '<td><code class="whole">top_<wbr>k</code></td>'
    for whole in (f"<p><code>{name}</code></p>", "<pre><code>--json\n</code></pre>", "<td>a_b 0.5</td>"):
        assert broken(whole) == whole
