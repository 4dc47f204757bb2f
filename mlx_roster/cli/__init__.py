"""The `mlx-roster` command."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from mlx_roster import __version__
from mlx_roster.cli import chat, completing, doctor, operating, pulling, serving, starting, versions
from mlx_roster.cli.failing import fail

#: Commands that other servers' programs have, and what does the like here. Those that are only misspelt typer knows.
ELSEWHERE = {
    "run": ("chat",),
    "talk": ("chat",),
    "generate": ("chat",),
    "list": ("check", "ps"),
    "ls": ("check", "ps"),
    "models": ("check", "ps"),
    "show": ("check", "ps"),
    "status": ("ps",),
    "top": ("ps",),
    "start": ("serve",),
    "up": ("serve",),
    "stop": ("unload",),
    "kill": ("unload",),
    "logs": ("events",),
    "get": ("pull",),
    "download": ("pull",),
    "create": ("init",),
    "validate": ("check",),
    "version": ("--version",),
    "help": ("--help",),
}


class _Commands(TyperGroup):
    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] in ELSEWHERE and not ctx.resilient_parsing:
            meant = ", ".join(f"'{name}'" for name in ELSEWHERE[args[0]])
            ctx.fail(f"No such command '{args[0]}'. Did you mean {meant}?")
        return super().resolve_command(ctx, args)


class _Program(typer.Typer):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        completing.rejoin(os.environ)
        try:
            return super().__call__(*args, **kwargs)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            # Python would try again with what it still has, at its end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            fail(f"this cannot be written: {error.strerror}", 1)
        finally:
            if "--install-completion" in sys.argv[1:2]:
                completing.complete_at_once(Path.home())


app = _Program(
    name="mlx-roster",
    cls=_Commands,
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
