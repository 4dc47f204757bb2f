"""Paths and Hub repos, as a roster file names them."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from pydantic_core import PydanticCustomError


def names_folder(source: str, base: Path) -> bool:
    """Whether `source` means a folder, there or not, rather than a Hub repo."""
    looks_local = source in (".", "..") or source.startswith(("./", "../", "/", "~"))
    # Nothing at all would be `base` itself.
    return looks_local or (source != "" and os.path.isdir(base / source))


def absolute(source: str, base: Path) -> Path:
    """Where `source` lies, there or not."""
    # Not `Path.resolve`: a source that is a symlink may point elsewhere by the time of the load.
    return Path(os.path.abspath(base / os.path.expanduser(source)))


def base_of(context: Any) -> Path:
    """What paths are relative to, of the context that a roster is validated in."""
    return context["base"] if context else Path.cwd()


def text_of(value: object) -> str:
    """A path as it was written. Raises ValueError for what cannot be one."""
    if not isinstance(value, str):
        raise PydanticCustomError("string_type", "Input should be a valid string")
    if not value.isprintable() or not value.strip():
        raise ValueError("should be a path without control characters" if value.strip() else "should not be empty")
    return value


def is_repo_id(text: str) -> bool:
    """The Hub's own rules, for `org/name`."""
    shaped = re.fullmatch(r"\b[\w.-]{1,96}\b/\b[\w.-]{1,96}\b", text, re.ASCII)
    return shaped is not None and "--" not in text and ".." not in text and not text.endswith(".git")
