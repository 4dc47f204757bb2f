"""Commands that talk to a running server. They import neither the server nor mlx."""

from __future__ import annotations

import json as jsonlib
import sys
import time
from collections.abc import Callable, Iterable
from typing import Annotated, Any, NoReturn, TypeVar

import typer
from rich.console import Console

from mlx_roster.cli import render
from mlx_roster.cli.remote import Refused, Remote, Unreachable, default_url

T = TypeVar("T")

Url = Annotated[
    str | None,
    typer.Option(
        envvar="MLX_ROSTER_URL",
        help="Where the server is. If not given: http://HOST:PORT of the environment, or http://127.0.0.1:8080.",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the server's answer as JSON.")]
Model = Annotated[str, typer.Argument(help="A model, by id or alias.", show_default=False)]


def ps(url: Url = None, json: Json = False) -> None:
    """Show which models are loaded, who uses them and what they take."""
    _answer(url, json, Remote.status, lambda overview: render.show(overview, Console()))


def load(model: Model, url: Url = None, json: Json = False) -> None:
    """Load a model and wait until it is there."""
    _answer(url, json, lambda remote: remote.act(model, "load"), _print_model)


def unload(
    model: Model,
    force: Annotated[bool, typer.Option("--force", help="Cut the requests that run on it.")] = False,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until it is gone.")] = True,
    url: Url = None,
    json: Json = False,
) -> None:
    """Unload a model once the requests that run on it have ended."""
    _answer(url, json, lambda remote: remote.act(model, "unload", force=force, wait=wait), _print_model)


def pin(model: Model, url: Url = None, json: Json = False) -> None:
    """Keep a model loaded, whatever else needs its room, until it is unpinned, its entry changes or the server ends."""
    _answer(url, json, lambda remote: remote.act(model, "pin"), _print_model)


def unpin(model: Model, url: Url = None, json: Json = False) -> None:
    """Let a model go again when its room is needed."""
    _answer(url, json, lambda remote: remote.act(model, "unpin"), _print_model)


def reload(url: Url = None, json: Json = False) -> None:
    """Have the roster file read anew. Models whose entry is unchanged stay loaded."""
    _answer(url, json, Remote.reload, lambda done: _print_lines(render.reloaded(done)))


def events(url: Url = None, json: Json = False) -> None:
    """Follow what the server does, until Ctrl-C."""

    def follow(remote: Remote) -> None:
        for name, body in remote.events():
            if json:
                line = jsonlib.dumps({"event": name, **body})
            elif name == "state":
                line = "\n".join(map(render.model, body["models"])) or "nothing is loaded"
            else:
                line = f"{time.strftime('%X')} {render.change(body)}"
            # One who reads through a pipe wants each as it comes.
            print(line, flush=True)  # noqa: T201

    try:
        _ask(url, json, follow)
    except KeyboardInterrupt:
        raise typer.Exit from None
    _fail("the server has ended", 1)


def _answer(
    url: str | None, json: bool, ask: Callable[[Remote], dict[str, Any]], show: Callable[[dict[str, Any]], None]
) -> None:
    body = _ask(url, json, ask)
    if json:
        typer.echo(jsonlib.dumps(body, indent=2))
    else:
        show(body)


def _ask(url: str | None, json: bool, ask: Callable[[Remote], T]) -> T:
    """What the server says. Ends the command where it refuses, or is not there."""
    try:
        with Remote(url or default_url()) as remote:
            return ask(remote)
    except Refused as refusal:
        if json:
            typer.echo(jsonlib.dumps(refusal.body))
        _fail(str(refusal), 1)
    except Unreachable as error:
        _fail(str(error), 2)


def _print_model(status: dict[str, Any]) -> None:
    typer.echo(render.model(status))


def _print_lines(lines: Iterable[str]) -> None:
    for line in lines:
        typer.echo(line)


def _fail(message: str, code: int) -> NoReturn:
    typer.secho(message, err=True, fg=typer.colors.RED)
    sys.exit(code)
