"""The `mlx-roster` command."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from mlx_roster import __version__
from mlx_roster.config import Roster
from mlx_roster.config.load import load, single, with_overrides
from mlx_roster.errors import ConfigError, RosterError

app = typer.Typer(
    name="mlx-roster",
    help="Serve many MLX models and LoRA adapters from one OpenAI-compatible endpoint.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Host = Annotated[
    str | None,
    typer.Option(help="Address to listen on. Wins over HOST, which wins over the roster.", show_default=False),
]
Port = Annotated[
    int | None, typer.Option(help="Port to listen on, 0 for any that is free. Wins over PORT.", show_default=False)
]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Log what the workers write, too.")]


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False) -> None:
    if version:
        typer.echo(f"mlx-roster {__version__}")
        raise typer.Exit


@app.command()
def serve(
    roster: Annotated[Path | None, typer.Argument(help="The roster file.", show_default=False)] = None,
    model: Annotated[str | None, typer.Option(help="Serve this folder or Hub repo, without a roster file.")] = None,
    adapter_path: Annotated[str | None, typer.Option(help="With --model: a LoRA adapter for it.")] = None,
    host: Host = None,
    port: Port = None,
    verbose: Verbose = False,
) -> None:
    """Serve a roster, or a single model."""
    try:
        if (roster is None) == (model is None):
            raise ConfigError("give a roster file, or --model, and not both: mlx-roster serve roster.yaml")
        if adapter_path is not None and model is None:
            raise ConfigError("--adapter-path goes with --model; a roster file lists its own adapters")
        found = load(roster) if roster is not None else single(str(model), adapter_path)
    except ConfigError as error:
        _fail(error, 2)
    _run(found, host, port, verbose)


@app.command()
def demo(host: Host = None, port: Port = None, verbose: Verbose = False) -> None:
    """Serve two small models and three adapters that come with the package."""
    from mlx_roster.demo import directory

    _run(load(directory() / "roster.yaml"), host, port, verbose)


@app.command()
def check(
    roster: Annotated[Path, typer.Argument(help="The roster file.")],
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Validate a roster and print what each model costs in memory and what fits together."""
    from mlx_roster import check as checks

    try:
        report = checks.check(load(roster))
    except ConfigError as error:
        _fail(error, 2)
    if json:
        typer.echo(report.to_json())
    else:
        checks.render(report, Console())
    raise typer.Exit(report.exit_code)


def _run(roster: Roster, host: str | None, port: int | None, verbose: bool) -> None:
    # Heavy, and of no use to the other commands.
    from mlx_roster import assembly
    from mlx_roster.console import Display

    display = Display(verbose=verbose)
    try:
        assembly.run(with_overrides(roster, host, port), display)
    except ConfigError as error:
        _fail(error, 2)
    except RosterError as error:
        _fail(error, 1)


def _fail(error: RosterError, code: int) -> NoReturn:
    for line in error.message.splitlines():
        typer.secho(line, err=True, fg=typer.colors.RED)
    sys.exit(code)
