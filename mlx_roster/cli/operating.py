"""Commands that talk to a running server. They import neither the server nor mlx."""

from __future__ import annotations

import json as jsonlib
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from mlx_roster.cli import completing, places
from mlx_roster.cli.failing import fail

if TYPE_CHECKING:
    from mlx_roster.cli.remote import Refused, Remote

# What these commands need takes longer to import than `--help` takes to print: so it is imported in the functions.

T = TypeVar("T")

Url = Annotated[
    str | None,
    typer.Option(
        envvar="MLX_ROSTER_URL",
        help="Where the server is. If not given: http://HOST:PORT of the environment, or http://127.0.0.1:8080.",
        show_default=False,
    ),
]
Key = Annotated[
    str | None,
    typer.Option(envvar="MLX_ROSTER_KEY", help="The server's API key, one with the scope admin.", show_default=False),
]
Json = Annotated[bool, typer.Option("--json", help="Print the server's answer as JSON.")]
Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="A model, by id or alias.", show_default=False, autocompletion=completing.models
    ),
]


def ps(url: Url = None, key: Key = None, json: Json = False) -> None:
    """Show which models are loaded, who uses them and what they take."""
    from rich.console import Console

    from mlx_roster.cli import render

    _answer((url, key), json, lambda remote: remote.status(), lambda overview: render.show(overview, Console()))


def load(model: Model, url: Url = None, key: Key = None, json: Json = False) -> None:
    """Load a model and wait until it is there. On a terminal, a bar shows how far it is."""

    def ask(remote: Remote) -> dict[str, Any]:
        from mlx_roster.cli.loading import shown

        with shown(remote, model):
            return remote.act(model, "load")

    _answer((url, key), json, ask, _print_model)


def unload(
    model: Model,
    force: Annotated[bool, typer.Option("--force", help="Cut the requests that run on it.")] = False,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until it is gone.")] = True,
    url: Url = None,
    key: Key = None,
    json: Json = False,
) -> None:
    """Unload a model once the requests that run on it have ended."""
    _answer((url, key), json, lambda remote: remote.act(model, "unload", force=force, wait=wait), _print_model)


def pin(model: Model, url: Url = None, key: Key = None, json: Json = False) -> None:
    """Keep a model loaded, whatever else needs its room, until it is unpinned, its entry changes or the server ends."""
    _answer((url, key), json, lambda remote: remote.act(model, "pin"), _print_model)


def unpin(model: Model, url: Url = None, key: Key = None, json: Json = False) -> None:
    """Let a model go again when its room is needed."""
    _answer((url, key), json, lambda remote: remote.act(model, "unpin"), _print_model)


def reload(url: Url = None, key: Key = None, json: Json = False) -> None:
    """Have the roster file read anew. Models whose entry is unchanged stay loaded."""
    from mlx_roster.cli import render

    _answer((url, key), json, lambda remote: remote.reload(), lambda done: _print_lines(render.reloaded(done)))


def events(url: Url = None, key: Key = None, json: Json = False) -> None:
    """Follow what the server does, until Ctrl-C."""
    from mlx_roster.cli import render

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
        _ask((url, key), json, follow)
    except KeyboardInterrupt:
        raise typer.Exit from None
    fail("the server has ended", 1)


#: Where the server is, and with which key it is asked.
Door = tuple[str | None, str | None]


def _answer(
    door: Door, json: bool, ask: Callable[[Remote], dict[str, Any]], show: Callable[[dict[str, Any]], None]
) -> None:
    body = _ask(door, json, ask)
    if json:
        typer.echo(jsonlib.dumps(body, indent=2))
    else:
        show(body)


def _ask(door: Door, json: bool, ask: Callable[[Remote], T]) -> T:
    """What the server says. Ends the command where it refuses, or is not there."""
    from mlx_roster.cli.remote import Refused, Remote, Unreachable

    url, key = door[0], usable(door[1])
    try:
        with Remote(url or places.default_url(), key) as remote:
            return ask(remote)
    except Refused as refusal:
        if json:
            typer.echo(jsonlib.dumps(refusal.body))
        fail(f"{refusal}{_remedy(refusal, key)}", 1)
    except Unreachable as error:
        fail(str(error), 2)


def usable(key: str | None) -> str:
    """`key` as a header can have it, empty where there is none. Ends the command where it cannot."""
    key = (key or "").strip()
    if not (key.isascii() and key.isprintable()):
        fail("--key, or MLX_ROSTER_KEY: an API key is printable ASCII", 2)
    return key


def _remedy(refusal: Refused, key: str) -> str:
    """What helps against a refusal for want of a key, as a line of its own."""
    if refusal.code == "invalid_api_key":
        return "\n--key or MLX_ROSTER_KEY says which" if not key else "\nthat was the one of --key or MLX_ROSTER_KEY"
    if refusal.code == "admin_required" and key:
        return "\n--key or MLX_ROSTER_KEY says which: auth.keys in the roster has the scopes of each"
    return ""


def _print_model(status: dict[str, Any]) -> None:
    from mlx_roster.cli import render

    typer.echo(render.model(status))


def _print_lines(lines: Iterable[str]) -> None:
    for line in lines:
        typer.echo(line)
