"""One finding: what is so, how much it matters, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "note", "warning", "problem"]


@dataclass(frozen=True, slots=True)
class Finding:
    """`area` is what it is about, in a word. A problem keeps a server from starting or from serving anything; a warning
    will hurt; a note is to be known. `remedy` is a command, or what else to do."""

    level: Level
    area: str
    text: str
    remedy: str | None = None


def ok(area: str, text: str) -> Finding:
    return Finding("ok", area, text)


def note(area: str, text: str, remedy: str | None = None) -> Finding:
    return Finding("note", area, text, remedy)


def warning(area: str, text: str, remedy: str) -> Finding:
    return Finding("warning", area, text, remedy)


def problem(area: str, text: str, remedy: str) -> Finding:
    return Finding("problem", area, text, remedy)
