"""Commands that need no running server: `serve`, `demo` and `check`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from mlx_roster.errors import ConfigError, RosterError

if TYPE_CHECKING:
    from mlx_roster.config.source import RosterSource

Host = Annotated[
    str | None,
    typer.Option(help="Address to listen on. Wins over HOST, which wins over the roster.", show_default=False),
]
Port = Annotated[
    int | None, typer.Option(help="Port to listen on, 0 for any that is free. Wins over PORT.", show_default=False)
]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Log what the workers write, too.")]


def serve(
    roster: Annotated[Path | None, typer.Argument(help="The roster file.", show_default=False)] = None,
    model: Annotated[str | None, typer.Option(help="Serve this folder or Hub repo, without a roster file.")] = None,
    adapter_path: Annotated[str | None, typer.Option(help="With --model: a LoRA adapter for it.")] = None,
    host: Host = None,
    port: Port = None,
    watch: Annotated[bool, typer.Option("--watch", help="Reload the roster file whenever it changes.")] = False,
    verbose: Verbose = False,
) -> None:
    """Serve a roster, or a single model."""
    # Heavy, and of no use to the commands that talk to a server: here and below.
    from mlx_roster.config.source import RosterSource

    if (roster is None) == (model is None):
        _fail(ConfigError("give a roster file, or --model, and not both: mlx-roster serve roster.yaml"), 2)
    if adapter_path is not None and model is None:
        _fail(ConfigError("--adapter-path goes with --model; a roster file lists its own adapters"), 2)
    if watch and roster is None:
        _fail(ConfigError("--watch goes with a roster file: with --model there is none to watch"), 2)
    source = RosterSource(roster, model=model or "", adapter_path=adapter_path, host=host, port=port)
    _run(source, verbose=verbose, watch=watch)


def demo(host: Host = None, port: Port = None, verbose: Verbose = False) -> None:
    """Serve two small models and three adapters that come with the package."""
    from mlx_roster.config.source import RosterSource
    from mlx_roster.demo import directory

    _run(RosterSource(directory() / "roster.yaml", host=host, port=port), verbose=verbose)


def check(
    roster: Annotated[Path, typer.Argument(help="The roster file.")],
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Validate a roster and print what each model costs in memory and what fits together."""
    from rich.console import Console

    from mlx_roster import check as checks
    from mlx_roster.config.load import load

    try:
        report = checks.check(load(roster))
    except ConfigError as error:
        _fail(error, 2)
    if json:
        typer.echo(report.to_json())
    else:
        checks.render(report, Console())
    raise typer.Exit(report.exit_code)


def _run(source: RosterSource, *, verbose: bool, watch: bool = False) -> None:
    from mlx_roster import assembly
    from mlx_roster.console import Display

    try:
        assembly.run(source, Display(verbose=verbose), watch=watch)
    except ConfigError as error:
        _fail(error, 2)
    except RosterError as error:
        _fail(error, 1)


def _fail(error: RosterError, code: int) -> NoReturn:
    for line in error.message.splitlines():
        typer.secho(line, err=True, fg=typer.colors.RED)
    sys.exit(code)
