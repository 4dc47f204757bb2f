"""How a command ends that could not do what it was asked."""

from __future__ import annotations

import sys
from typing import NoReturn

import typer

from mlx_roster.errors import RosterError


def fail(error: RosterError | str, code: int) -> NoReturn:
    """Say why on standard error, a line at a time, and exit with `code`."""
    for line in (error if isinstance(error, str) else error.message).splitlines():
        typer.secho(line, err=True, fg=typer.colors.RED)
    sys.exit(code)
