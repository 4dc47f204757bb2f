"""What the log may say and a client may not: where things are on this machine."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from mlx_roster.registry.overview import Change, Overview, Reload

T = TypeVar("T", Overview, Change, Reload)

#: The folders before a file's name, where a line begins `FILE:LINE: …`.
_FOLDERS = re.compile(r"^[^:\n]*/(?=[^/:\n]+:)", re.MULTILINE)


def discreet(value: T, base: Path) -> T:
    """`value` without the folders in a reload's complaints. `base` is the roster file's own folder."""
    if isinstance(value, Reload):
        return value if value.error is None else replace(value, error=without_folders(value.error, base))
    if isinstance(value, Overview):
        return value if value.reload is None else replace(value, reload=discreet(value.reload, base))
    error = value.fields.get("error") if value.kind == "reload" else None
    return replace(value, fields={**value.fields, "error": without_folders(error, base)}) if error else value


def without_folders(complaints: str, base: Path) -> str:
    """A ConfigError's lines, each `file:line: key: what is wrong`, with the names of files only."""
    return _FOLDERS.sub("", complaints.replace(f"{base}{os.sep}", ""))
