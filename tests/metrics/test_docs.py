"""docs/metrics.md has every metric that there is, as it is, and no other."""

from __future__ import annotations

import re
from pathlib import Path

from tests.metrics.scraped import busy, exposed

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"

ROW = re.compile(
    r"^\| `(?P<name>\w+)` \| (?P<kind>\w+) \|(?P<labels>[^|]*)\| (?P<text>[^|]*?) \|(?P<like>[^|]*)\|$", re.M
)


def test_the_table_is_what_a_server_exposes() -> None:
    rows = list(ROW.finditer(PAGE.read_text()))
    written = {row["name"]: (row["kind"], tuple(re.findall(r"`(\w+)`", row["labels"])), row["text"]) for row in rows}
    assert len(written) == len(rows), "a metric is there twice"
    found = exposed(busy())
    assert [name for name, family in found.items() if not family.samples] == [], "labels of these are not seen here"
    assert written == {name: (family.kind, family.labels, family.text) for name, family in found.items()}


def test_every_row_is_read() -> None:
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    assert [line for line in rows if not ROW.match(line)] == []


def test_names_are_those_of_their_counterparts() -> None:
    for row in ROW.finditer(PAGE.read_text()):
        for like in re.findall(r"`vllm:(\w+)`$", row["like"].split(";")[0].strip()):
            if "info" not in like:
                assert row["name"].removesuffix("_total") == f"mlx_roster_{like}".removesuffix("_total")
