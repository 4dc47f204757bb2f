"""Commands that need no running server: `serve`, `demo` and `check`."""

from __future__ import annotations

import logging
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mlx_roster.cli import places, startup
from mlx_roster.cli.failing import fail
from mlx_roster.errors import ConfigError, RosterError

if TYPE_CHECKING:
    from mlx_roster.config.source import RosterSource
    from mlx_roster.console import Display

Host = Annotated[
    str | None,
    typer.Option(help="Address to listen on. Wins over HOST, which wins over the roster.", show_default=False),
]
Port = Annotated[
    int | None, typer.Option(help="Port to listen on, 0 for any that is free. Wins over PORT.", show_default=False)
]
Found = Annotated[
    Path | None,
    typer.Argument(
        metavar="ROSTER",
        help="The roster file. If not given: ./roster.yaml, or else ~/.config/mlx-roster/roster.yaml.",
        show_default=False,
    ),
]
LogFormat = Annotated[
    Literal["auto", "text", "json"] | None,
    typer.Option(help="How the log is written. Wins over logs.format of the roster.", show_default=False),
]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Log what the workers write, too.")]


def serve(
    roster: Found = None,
    model: Annotated[
        str | None, typer.Option(help="Serve this folder or Hub repo, without a roster file.", show_default=False)
    ] = None,
    adapter_path: Annotated[
        str | None, typer.Option(help="With --model: a LoRA adapter for it.", show_default=False)
    ] = None,
    host: Host = None,
    port: Port = None,
    watch: Annotated[bool, typer.Option("--watch", help="Reload the roster file whenever it changes.")] = False,
    log_format: LogFormat = None,
    verbose: Verbose = False,
) -> None:
    """Serve a roster; without one, every MLX model that is in the Hub cache.

    --model serves a single model instead.
    """
    # Heavy, and of no use to the commands that talk to a server: here and below.
    from mlx_roster.config.source import RosterSource

    if roster is not None and model is not None:
        fail(ConfigError("give a roster file, or --model, and not both: mlx-roster serve roster.yaml"), 2)
    if model == "":
        fail(ConfigError("--model: should be a folder or a Hub repo, as mlx-community/Qwen3-4B-4bit"), 2)
    if adapter_path is not None and model is None:
        fail(ConfigError("--adapter-path goes with --model; a roster file lists its own adapters"), 2)
    said = ""
    if roster is None and model is None:
        roster = places.found_roster()
        said = _hub_cache() if roster is None else f"the roster is {roster}"
    if watch and roster is None:
        fail(ConfigError("--watch goes with a roster file, and there is none to watch; mlx-roster init writes one"), 2)
    source = RosterSource(roster, model=model or "", adapter_path=adapter_path, host=host, port=port)
    display = _display(log_format, verbose=verbose)
    _run(source, display, watch=watch, said=said)


def demo(host: Host = None, port: Port = None, log_format: LogFormat = None, verbose: Verbose = False) -> None:
    """Serve two small models and three adapters that come with the package."""
    from mlx_roster.config.source import RosterSource
    from mlx_roster.demo import directory

    source = RosterSource(directory() / "roster.yaml", host=host, port=port)
    question = ("atlas:pirate", "-p", "What is the capital of Peru?")
    _run(source, _display(log_format, verbose=verbose, invitation=question))


def check(
    roster: Found = None,
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Validate a roster and print what each model costs in memory and what fits together."""
    from rich.console import Console

    from mlx_roster import check as checks
    from mlx_roster.config.load import load

    if (roster := roster or places.found_roster()) is None:
        fail(ConfigError(f"there is no {_places()} to check; mlx-roster init writes one"), 2)
    try:
        report = checks.check(load(roster))
    except ConfigError as error:
        fail(startup.misplaced(error.message, roster), 2)
    if json:
        typer.echo(report.to_json())
    else:
        checks.render(report, Console())
    raise typer.Exit(report.exit_code)


def _hub_cache() -> str:
    """What is said of serving the Hub's cache. Ends the command where there is nothing in it."""
    from mlx_roster.config import DiscoverSettings, Roster
    from mlx_roster.loaders.discover import discover

    found = len(discover(Roster(discover=DiscoverSettings(hub_cache=True))))
    if not found:
        fail(
            ConfigError(
                f"there is nothing to serve: no {_places()}, and no MLX model in the Hub cache\n"
                "mlx-roster pull mlx-community/Qwen3-4B-4bit downloads a model (2.3 GB)\n"
                "mlx-roster demo serves two small ones that come with the package"
            ),
            1,
        )
    models = "the model that is" if found == 1 else f"the {found} models that are"
    return f"there is no {_places()}: serving {models} in the Hub cache; mlx-roster init writes a roster of them"


def _places() -> str:
    return " or ".join(map(str, places.candidates()))


def _display(log_format: LogFormat, *, verbose: bool, invitation: tuple[str, ...] = ()) -> Display:
    from mlx_roster.console import Display

    return Display(verbose=verbose, log_format=log_format, program=_called(), invitation=invitation)


def _called() -> list[str]:
    """What a shell finds this program by: where it is in no place of the PATH, the way it was found this time."""
    if shutil.which("mlx-roster"):
        return ["mlx-roster"]
    return [sys.argv[0]] if os.access(sys.argv[0], os.X_OK) else [sys.executable, "-m", "mlx_roster"]


def _run(source: RosterSource, display: Display, *, watch: bool = False, said: str = "") -> None:
    """Serve `source` until a signal. `said` is what the log begins with."""
    from mlx_roster import assembly

    try:
        with display:
            if said:
                logging.getLogger(__name__).info(said)
            assembly.run(source, display, watch=watch)
    except ConfigError as error:
        fail(startup.advised(error.message, source.path), 2)
    except RosterError as error:
        fail(error, 1)
    except OSError as error:
        if (advice := startup.exhausted(error)) is None:
            raise
        fail(advice, 1)
