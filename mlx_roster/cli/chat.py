"""`mlx-roster chat`: talk to a running server's models. Imports neither the server nor mlx."""

from __future__ import annotations

import json as jsonlib
import sys
from contextlib import closing
from io import TextIOWrapper
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from mlx_roster.cli import completing, places
from mlx_roster.cli.operating import Door, Url, usable
from mlx_roster.cli.terminal import Screen, clean

if TYPE_CHECKING:
    from mlx_roster.cli.asking import Server
    from mlx_roster.cli.conversation import Conversation
    from mlx_roster.cli.remote import Refused

# An HTTP client takes longer to import than `--help` takes to print: so it is imported in the functions.

#: What a shell says of a command that Ctrl-C has ended.
INTERRUPTED = 130


def chat(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL[:ADAPTER]",
            help="Whom to talk to: the server's default if left out.",
            autocompletion=completing.refs,
        ),
    ] = None,
    prompt: Annotated[
        str | None, typer.Option("--prompt", "-p", help="Ask this, print the answer and end.", show_default=False)
    ] = None,
    system: Annotated[str | None, typer.Option(help="What the model is told first.", show_default=False)] = None,
    temperature: Annotated[float | None, typer.Option(help="0 always takes the likeliest.", show_default=False)] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Take from the likeliest tokens up to this sum.", show_default=False)
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Where an answer is cut off.", show_default=False)] = None,
    seed: Annotated[int | None, typer.Option(help="Draw the same tokens each time.", show_default=False)] = None,
    url: Url = None,
    key: Annotated[
        str | None, typer.Option(envvar="MLX_ROSTER_KEY", help="The server's API key.", show_default=False)
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the whole response as JSON: not for a talk.")] = False,
) -> None:
    """Talk to a model in the terminal, or ask it one thing: from --prompt, or from a pipe.

    In a talk, /help lists what there is: other models and adapters, settings, /retry. Ctrl-C stops an answer.
    """
    from mlx_roster.cli.conversation import Conversation

    given = {"temperature": temperature, "top_p": top_p, "max_tokens": max_tokens, "seed": seed}
    settings = {name: value for name, value in given.items() if value is not None}
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # an answer may have what the locale's encoding lacks
            stream.reconfigure(errors="replace")
    _converse((url, key), Conversation(name=model, system=system, settings=settings), prompt, json=json)


def _converse(door: Door, conversation: Conversation, prompt: str | None, *, json: bool) -> None:
    """A talk, or one question. Ends the command where that fails."""
    from mlx_roster.cli.asking import Server
    from mlx_roster.cli.remote import Refused, Unreachable

    url, key = door[0] or places.default_url(), usable(door[1])
    talks = prompt is None and not json and sys.stdin.isatty() and sys.stdout.isatty()
    try:
        with Server(url, key) as server:
            if talks:
                _talk(server, conversation)
            else:
                _ask(server, conversation, _question() if prompt is None else prompt, json=json)
    except Refused as refusal:
        if json:
            typer.echo(jsonlib.dumps(refusal.body))
        _fail(_refusal(refusal), 1)
    except Unreachable as error:
        _fail(str(error), 2)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def _talk(server: Server, conversation: Conversation) -> None:
    from mlx_roster.cli.talk import Talk

    Talk(server, conversation, Screen(sys.stdout)).run()


def _question() -> str:
    if sys.stdin.isatty():
        typer.echo("what to ask? Ctrl-D ends it", err=True)
    return sys.stdin.read()


def _ask(server: Server, conversation: Conversation, question: str, *, json: bool) -> None:
    """One question, one answer, and nothing but it on standard output."""
    from mlx_roster.cli.asking import Facts, Piece

    if not question.strip():
        _fail("there is nothing to ask: --prompt TEXT, or a pipe, says what", 2)
    request: dict[str, Any] = conversation.ask(question)
    if json:
        typer.echo(jsonlib.dumps(server.whole(request), indent=2))
        return
    screen, facts = Screen(sys.stdout), Facts()
    try:
        with closing(server.pieces(request, facts)) as pieces:
            for piece in pieces:
                if isinstance(piece, Piece) and not piece.reasoning:
                    screen.write(piece.text)
    finally:
        if not screen.at_line_start:
            screen.write("\n")
    if facts.ignored:
        typer.echo(f"not heeded by the server: {clean(facts.ignored)}", err=True)


def _refusal(refusal: Refused) -> str:
    more = {
        "invalid_api_key": "--key, or MLX_ROSTER_KEY in the environment, is where it is looked for",
        "model_required": "mlx-roster chat NAME; /v1/models lists the names",
    }.get(refusal.code)
    return str(refusal) if more is None else f"{refusal}\n{more}"


def _fail(message: str, code: int) -> NoReturn:
    typer.secho(clean(message), err=True, fg=typer.colors.RED)
    sys.exit(code)
