"""The `mlx-roster` command."""

from __future__ import annotations

from typing import Annotated

import typer

from mlx_roster import __version__
from mlx_roster.cli import operating, serving

app = typer.Typer(
    name="mlx-roster",
    help="Serve many MLX models and LoRA adapters from one OpenAI-compatible endpoint.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False) -> None:
    if version:
        typer.echo(f"mlx-roster {__version__}")
        raise typer.Exit


_serving = (serving.serve, serving.demo, serving.check)
_operating = (
    *(operating.ps, operating.load, operating.unload, operating.pin, operating.unpin),
    *(operating.reload, operating.events),
)
for _panel, _commands in (("Serving", _serving), ("A running server", _operating)):
    for _command in _commands:
        app.command(rich_help_panel=_panel)(_command)
