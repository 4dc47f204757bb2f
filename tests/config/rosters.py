"""Rosters as text, and what is said of them."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import pytest

from mlx_roster.config import Roster
from mlx_roster.config.load import parse
from mlx_roster.errors import ConfigError

BASE = Path("/nowhere/rosters")

MINIMAL = "models: {atlas: {source: ./atlas}}\n"


def read(text: str, base: Path = BASE) -> Roster:
    return parse(dedent(text), name="roster.yaml", base=base)


def problems(text: str, base: Path = BASE) -> list[str]:
    with pytest.raises(ConfigError) as refused:
        read(text, base)
    return refused.value.message.splitlines()


def with_model(lines: str) -> str:
    """A roster whose only model has `lines`, which begin on line 4."""
    return "models:\n  atlas:\n    source: ./atlas\n" + "".join(f"    {line}\n" for line in dedent(lines).splitlines())
