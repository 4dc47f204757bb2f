"""A roster from a file, from text or from a command line: read, expand the environment, validate.

Whatever is wrong ends in one ConfigError with a line for each problem: `roster.yaml:12: models.atlas.tll: unknown key`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from pydantic import ValidationError

from mlx_roster.config.document import Marked, read
from mlx_roster.config.model import Roster, open_to_all
from mlx_roster.config.names import clashes, sanitized
from mlx_roster.config.paths import names_folder
from mlx_roster.config.problems import Problem, config_error, from_pydantic
from mlx_roster.config.settings import ServerSettings, reaches_others
from mlx_roster.errors import ConfigError


def load(path: Path) -> Roster:
    """The roster in the file at `path`. Sources in it are relative to its folder. Raises ConfigError."""
    name = str(path)
    try:
        raw = path.read_bytes()
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise config_error(name, [Problem(f"cannot be read: {reason}")]) from error
    try:
        # Editors on Windows begin files with a byte order mark.
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise config_error(name, [Problem("is not UTF-8 text", line=line)]) from error
    return parse(text, name=name, base=path.absolute().parent)


def parse(text: str, *, name: str, base: Path) -> Roster:
    """The roster in `text`. `name` is what errors call it; sources are relative to `base`. Raises ConfigError."""
    document, problems = read(text, os.environ)
    if document is not None and not isinstance(document.plain, dict) and not problems:
        problems = [Problem("should be a mapping with the key models", line=document.line)]
    if document is None or not isinstance(document.plain, dict):
        raise config_error(name, problems)
    # What could not be read is no value to complain of a second time, nor is it missing where it stands.
    known = {place for problem in problems for place in (problem.location, problem.location[:-1])}
    try:
        roster = Roster.model_validate(document.plain, context={"base": base})
    except ValidationError as error:
        found = [*_located(from_pydantic(error, Roster), document), *_clashes(document), *_exposed(document)]
        problems += [problem for problem in found if problem.location not in known]
        raise config_error(name, problems) from error
    if problems:
        raise config_error(name, problems)
    return roster


def _located(problems: Iterable[Problem], document: Marked) -> Iterator[Problem]:
    for problem in problems:
        yield Problem(problem.message, problem.location, document.line_of(problem.location))


def _clashes(document: Marked) -> Iterator[Problem]:
    for clash in clashes(document.plain):
        where = f" (line {document.line_of(clash.first)})" if clash.first else ""
        yield Problem(clash.message + where, clash.location, document.line_of(clash.location))


def _exposed(document: Marked) -> Iterator[Problem]:
    plain = document.plain
    server, auth = plain.get("server"), plain.get("auth")
    host = server.get("host") if isinstance(server, dict) else None
    keyed = isinstance(auth, dict) and auth.get("keys")
    if isinstance(host, str) and not keyed and reaches_others(host):
        location = ("server", "host")
        yield Problem(open_to_all(host), location, document.line_of(location))


def single(model: str, adapter_path: str | None = None) -> Roster:
    """A roster of one model, and at most one adapter, for a command line without a file.

    `model` is a folder or a Hub repo id. Names are made from the folders' names. Raises ConfigError, which names the
    flag, also for a folder that is not there.
    """
    base = Path.cwd()
    local = names_folder(model, base)
    folder = _existing("--model", model) if local else None
    name = sanitized(folder.name if folder else model)
    entry: dict[str, object] = {"source": folder or model}
    if adapter_path is not None:
        adapter = _existing("--adapter-path", adapter_path)
        entry["adapters"] = {sanitized(adapter.name): adapter}
    try:
        return Roster.model_validate({"default_model": name, "models": {name: entry}}, context={"base": base})
    except ValidationError as error:
        problems = [Problem(problem.message) for problem in from_pydantic(error, Roster)]
        raise config_error("--model", problems) from error


def _existing(flag: str, folder: str) -> Path:
    path = Path(os.path.abspath(os.path.expanduser(folder)))
    if not os.path.isdir(path):
        raise config_error(flag, [Problem(f'there is no folder "{folder}"')])
    return path


def with_overrides(roster: Roster, host: str | None = None, port: int | None = None) -> Roster:
    """`roster` with HOST and PORT of the environment instead of what it says, and the flags instead of those.

    An empty variable counts as unset. Raises ConfigError, which names the variable or flag.
    """
    origins = {"host": "--host", "port": "--port"}
    settings: dict[str, object] = roster.server.model_dump()
    for key, flag in (("host", host), ("port", port)):
        variable = os.environ.get(key.upper())
        if flag is not None:
            settings[key] = flag
        elif variable:
            origins[key] = key.upper()
            settings[key] = int(variable) if key == "port" and re.fullmatch("[0-9]{1,9}", variable) else variable
    lines = []
    if isinstance(address := settings["host"], str) and not roster.auth.keys and reaches_others(address):
        lines.append(Problem(open_to_all(address)).render(origins["host"]))
    try:
        server = ServerSettings.model_validate(settings)
    except ValidationError as error:
        problems = from_pydantic(error, ServerSettings)
        lines += [Problem(problem.message).render(origins[str(problem.location[0])]) for problem in problems]
        raise ConfigError("\n".join(lines)) from error
    if lines:
        raise ConfigError("\n".join(lines))
    return roster.model_copy(update={"server": server})
