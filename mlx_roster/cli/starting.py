"""`mlx-roster init`: a roster of what is in the Hub cache."""

from __future__ import annotations

import json as jsonlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlx_roster.cli import places
from mlx_roster.cli.failing import fail
from mlx_roster.errors import ConfigError

if TYPE_CHECKING:
    from mlx_roster.cli.inventory import Inventory

#: Instead of a path: write to standard output.
STDOUT = Path("-")


def init(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="PATH",
            help="Where to write it; - is standard output. If not given: ./roster.yaml.",
            show_default=False,
        ),
    ] = Path(places.ROSTER),
    force: Annotated[bool, typer.Option("--force", help="Overwrite a file that is there already.")] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Print what was found as JSON. With - nothing else is written.")
    ] = False,
) -> None:
    """Write a commented roster of the models and adapters that are in the Hub cache, with what they take."""
    from mlx_roster.cli import inventory, skeleton
    from mlx_roster.config.load import parse

    path = path / places.ROSTER if path.is_dir() else path
    if path != STDOUT and not force and os.path.lexists(path):
        fail(ConfigError(f"{path} is there already; --force overwrites it, and - shows what would be written"), 1)
    base = path.absolute().parent
    found = inventory.taken(base)
    text = skeleton.text(found)
    try:
        # What is written can be served: that is the promise of this command.
        parse(text, name=str(path), base=base)
        if path != STDOUT:
            _write(path, text)
    except ConfigError as error:
        fail(error, 1)
    if json:
        written = None if path == STDOUT else str(path)
        typer.echo(jsonlib.dumps({"path": written, **found.summary()}, indent=2))
    elif path == STDOUT:
        typer.echo(text, nl=False)
    else:
        _tell(path, found)


def _write(path: Path, text: str) -> None:
    """All of it or nothing. Raises ConfigError."""
    temporary = path.with_name(f".{path.name}-{os.getpid()}")
    try:
        try:
            temporary.write_text(text, encoding="utf-8")
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from error


def _tell(path: Path, found: Inventory) -> None:
    from mlx_roster.config.units import format_bytes

    typer.echo(f"wrote {path}; the budget is {format_bytes(found.budget)}")
    for model in found.models:
        size = "" if model.cost.estimated is None else f" {format_bytes(model.cost.estimated)},"
        names = f", with {', '.join(model.adapters)}" if model.adapters else ""
        typer.echo(f"  {model.name}:{size} {'fits' if model.fits else 'does not fit: left out'}{names}")
    given = "" if path == Path(places.ROSTER) else f" {path}"
    if found.default is None:
        typer.echo("there is no model in the Hub cache that fits; next: mlx-roster pull mlx-community/Qwen3-4B-4bit")
    else:
        typer.echo(f"next: mlx-roster serve{given}")
