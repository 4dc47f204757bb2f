"""The `mlx-roster` command."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Annotated, Any

import typer

from mlx_roster import __version__
from mlx_roster.cli import chat, completing, doctor, operating, pulling, serving, starting, versions


class _Program(typer.Typer):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        completing.rejoin(os.environ)
        return super().__call__(*args, **kwargs)


app = _Program(
    name="mlx-roster",
    help="Serve many MLX models and LoRA adapters from one OpenAI-compatible endpoint.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
    json: Annotated[
        bool, typer.Option("--json", help="With --version: also those of Python, mlx and mlx-lm, as JSON.")
    ] = False,
) -> None:
    if json and not version:
        raise typer.BadParameter("goes with --version, or after a command: mlx-roster ps --json", param_hint="--json")
    if version:
        typer.echo(versions.as_json() if json else f"mlx-roster {__version__}")
        raise typer.Exit


#: Every command with an example of its use, by the panel of `--help` that it is in.
PANELS: dict[str, dict[Callable[..., None], str]] = {
    "Start here": {
        serving.demo: "mlx-roster demo --port 9000",
        doctor.doctor: "mlx-roster doctor roster.yaml",
        pulling.pull: "mlx-roster pull mlx-community/Qwen3-4B-4bit",
        starting.init: "mlx-roster init roster.yaml",
        serving.check: "mlx-roster check roster.yaml",
        serving.serve: "mlx-roster serve roster.yaml --watch",
        chat.chat: "mlx-roster chat atlas:pirate",
    },
    "A running server": {
        operating.ps: "mlx-roster ps --json",
        operating.load: "mlx-roster load atlas",
        operating.unload: "mlx-roster unload atlas --no-wait",
        operating.pin: "mlx-roster pin atlas",
        operating.unpin: "mlx-roster unpin atlas",
        operating.reload: "mlx-roster reload",
        operating.events: "mlx-roster events --url http://127.0.0.1:9000",
    },
}

for _panel, _commands in PANELS.items():
    for _command, _example in _commands.items():
        app.command(rich_help_panel=_panel, epilog=f"Example: {_example}")(_command)
