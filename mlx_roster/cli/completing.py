"""What a shell is told when somebody presses Tab after a model's name begins: fast, and silent whatever goes wrong.

The names come from the server that runs, or else from the roster file that `serve` would take.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, MutableMapping
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import typer

from mlx_roster.cli import places

#: How long a server may take to say what it has, in seconds: somebody waits with a finger on Tab.
PATIENCE = 0.15

#: What is read of its answer, in bytes, and the names that a shell is shown.
LONGEST = 4 * 2**20
MOST = 500

#: A name that no shell takes for anything else. zsh evaluates what it is offered: others' names must not be commands.
_HARMLESS = re.compile(r"[\w./:@+=,%-]+")

#: Where `rejoin` leaves what bash has already, of the name that is completed.
_BEFORE = "_MLX_ROSTER_BEFORE"

_AUTOLOADED = '[[ $zsh_eval_context[-1] == loadautofunc ]] && _mlx_roster_completion "$@"'


def rejoin(environ: MutableMapping[str, str]) -> None:
    """To be called before typer reads what bash asks: for bash a word ends at a colon, so that MODEL:ADAPTER is three.

    They are made one again. Of the one under the cursor, bash replaces only what follows the last colon: so that is
    what is completed, and what comes before it is put aside for the functions below.
    """
    asked = environ.get("COMP_WORDS", "")
    if environ.get("_MLX_ROSTER_COMPLETE") != "complete_bash" or "\n" not in asked:
        return
    words: list[str] = []
    for word in asked.split("\n")[: int(environ["COMP_CWORD"]) + 1]:
        if words and word and (word[0] == ":" or words[-1][-1:] == ":"):
            words[-1] += word
        else:
            words.append(word)
    before, colon, rest = words.pop().rpartition(":")
    environ["COMP_WORDS"] = "\n".join([*words, rest])
    environ["COMP_CWORD"] = str(len(words))
    environ[_BEFORE] = before + colon


def complete_at_once(home: Path) -> None:
    """To be called after typer has installed its script for zsh, if it has.

    At the first Tab of a session zsh runs that file, and takes what it does for the completion; it only defines one.
    """
    script = home / ".zfunc" / "_mlx-roster"
    if script.is_file() and _AUTOLOADED not in (text := script.read_text()):
        script.write_text(f"{text}\n{_AUTOLOADED}\n")


def models(context: typer.Context, incomplete: str) -> list[str]:
    """Models that commands such as `load` take."""
    return _beginning(incomplete, (name for name in _known(context) if ":" not in name))


def refs(context: typer.Context, incomplete: str) -> list[str]:
    """Models, and MODEL:ADAPTER."""
    return _beginning(incomplete, _known(context))


def to_pull(context: typer.Context, incomplete: str) -> list[str]:
    """Models that the roster file has."""
    named = context.params.get("roster")
    path = named if named is not None else places.found_roster()
    return _beginning(incomplete, (name for name in _in_file(path) if ":" not in name))


def _beginning(incomplete: str, names: Iterator[str]) -> list[str]:
    before = os.environ.get(_BEFORE, "")
    fitting = {name for name in names if name.startswith(before + incomplete) and _HARMLESS.fullmatch(name)}
    return sorted(name.removeprefix(before) for name in fitting)[:MOST]


def _known(context: typer.Context) -> Iterator[str]:
    url = context.params.get("url") or os.environ.get("MLX_ROSTER_URL") or places.default_url()
    served = _served(url, context.params.get("key") or os.environ.get("MLX_ROSTER_KEY"))
    yield from _in_file(places.found_roster()) if served is None else served


def _served(url: str, key: str | None) -> list[str] | None:
    """What the server at `url` lists, aliases too; None where none answers."""
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme != "http" or parts.hostname is None:
            return None
        connection = HTTPConnection(parts.hostname, parts.port, timeout=PATIENCE)
        try:
            connection.request("GET", "/v1/models", headers={"Authorization": f"Bearer {key}"} if key else {})
            answer = connection.getresponse()
            listed: Any = json.loads(answer.read(LONGEST)) if answer.status == 200 else None
        finally:
            connection.close()
        return None if listed is None else [name for model in listed["data"] for name in _names(model)]
    except (OSError, HTTPException, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None


def _names(model: Any) -> Iterator[str]:
    yield str(model["id"])
    yield from map(str, model.get("roster", {}).get("aliases", ()))


def _in_file(path: object) -> Iterator[str]:
    """The names in a roster file, as far as it can be read. Not by `config.load`, which takes as long to import as all
    the rest."""
    import yaml

    try:
        with open(os.fspath(path), "rb") as file:  # type: ignore[call-overload]
            document: Any = yaml.load(file, Loader=yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader)
        found = [name for model, entry in document["models"].items() for name in _entry_names(str(model), entry)]
    except (OSError, yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return
    yield from found


def _entry_names(name: str, entry: Any) -> Iterator[str]:
    yield name
    yield from map(str, entry.get("aliases", ()))
    for adapter, spec in entry.get("adapters", {}).items():
        yield f"{name}:{adapter}"
        if isinstance(spec, dict):
            yield from map(str, spec.get("aliases", ()))
