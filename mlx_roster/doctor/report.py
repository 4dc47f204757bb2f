"""Findings as people and scripts read them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mlx_roster.doctor.finding import Finding, Level

_MARKS: dict[Level, tuple[str, str]] = {
    "ok": ("ok", "green"),
    "note": ("note", "cyan"),
    "warning": ("warning", "yellow"),
    "problem": ("problem", "bold red"),
}


def exit_code(findings: Sequence[Finding]) -> int:
    """1 where something keeps a server from working, else 0."""
    return int(any(finding.level == "problem" for finding in findings))


def to_json(findings: Sequence[Finding]) -> str:
    return json.dumps({"ok": exit_code(findings) == 0, "findings": [asdict(one) for one in findings]}, indent=2)


def render(findings: Sequence[Finding], console: Console) -> None:
    """A line for each, and under it what to do; long ones go on under themselves on a terminal."""
    if console.is_terminal:
        table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True, style="bold")
        table.add_column(overflow="fold")
        for one in findings:
            word, style = _MARKS[one.level]
            text = Text(one.text)
            if one.remedy is not None:
                text.append(f"\n→ {one.remedy}", "cyan")
            table.add_row(Text(word, style), one.area, text)
        console.print(table)
    else:
        for one in findings:
            remedy = "" if one.remedy is None else f" -> {one.remedy}"
            _say(f"{_MARKS[one.level][0]:7} {one.area}: {one.text}{remedy}", console)
    _say("", console)
    _say(_verdict(findings), console)


def _verdict(findings: Sequence[Finding]) -> str:
    counts = Counter(finding.level for finding in findings)
    counted = [
        f"{counts[level]} {level}{'' if counts[level] == 1 else 's'}"
        for level in ("problem", "warning", "note")
        if counts[level]
    ]
    return ", ".join(counted) or "nothing stands in the way"


def _say(line: str, console: Console) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)
