"""What a name may look like, and that each is given once: models, aliases and adapters' aliases share one space."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Annotated

from pydantic import StringConstraints

#: `:` divides a model from its adapter in a request; `$`, `{` and `}` would be a variable that keys do not expand.
_ILLEGAL = r"\s:${}\x00-\x1f\x7f"

Name = Annotated[str, StringConstraints(pattern=rf"^[^{_ILLEGAL}]+$")]

#: The steps from the top of the file to a value: keys, and numbers within lists.
Location = tuple[str | int, ...]


def sanitized(text: str) -> str:
    """A legal name that resembles `text`."""
    return re.sub(rf"[{_ILLEGAL}]+", "-", text).strip("-") or "model"


def suggestion(word: str, known: Iterable[str]) -> str:
    """`, did you mean "max_adapters"?`, or nothing where nothing is close."""
    by_spelling = {name.lower().replace("-", "_"): name for name in known}
    close = difflib.get_close_matches(word.lower().replace("-", "_"), by_spelling, n=1, cutoff=0.6)
    return f', did you mean "{by_spelling[close[0]]}"?' if close else ""


@dataclass(frozen=True, slots=True)
class Clash:
    """A name that cannot stand. `first` is where the same name stood before, if that is what is wrong."""

    location: Location
    message: str
    first: Location | None = None


def clashes(tree: object) -> list[Clash]:
    """Names given twice, and a `default_model` or a draft that names nothing.

    `tree` is a whole roster in plain values. It may be wrong in other ways: what has the wrong type is passed over.
    """
    models = _mapping(_mapping(tree).get("models"))
    taken: dict[str, tuple[Location, str]] = {name: (("models", name), "the name of a model") for name in models}
    found: list[Clash] = []
    for location, alias, owner in _aliases(models):
        if alias in taken:
            first, what = taken[alias]
            found.append(Clash(location, f'"{alias}" is already {what}', first))
        else:
            taken[alias] = (location, f'an alias of "{owner}"')
    default = _mapping(tree).get("default_model")
    if isinstance(default, str) and default not in taken and not _may_be_elsewhere(default, _mapping(tree)):
        found.append(Clash(("default_model",), f'no model or alias is named "{default}"{suggestion(default, taken)}'))
    return [*found, *_drafts(models)]


def _drafts(models: Mapping[str, object]) -> Iterator[Clash]:
    """What names a draft model that is not there, or the very model that it is to draft for."""
    for name, entry in models.items():
        listed = _mapping(entry).get("draft")
        drafts = listed if isinstance(listed, list | tuple) else [listed]
        for index, draft in enumerate(drafts):
            word = _mapping(draft).get("model")
            location: Location = ("models", name, "draft", *([index] if drafts is listed else []), "model")
            if word == name:
                yield Clash(location, "a model cannot draft for itself")
            elif isinstance(word, str) and word not in models and "/" not in word:
                near = suggestion(word, models.keys() - {name})
                yield Clash(location, f'no model is named "{word}"{near}')


def _may_be_elsewhere(name: str, roster: Mapping[str, object]) -> bool:
    """Whether the roster may have a model that is called so without listing it."""
    unlisted, discover = _mapping(roster.get("unlisted")), _mapping(roster.get("discover"))
    hub = unlisted.get("hub")
    globs = [glob for glob in hub if isinstance(glob, str)] if isinstance(hub, list | tuple) else []
    anything = discover.get("hub_cache") is True or unlisted.get("paths") is True
    return "/" in name and (anything or any(fnmatchcase(name, glob) for glob in globs))


def _aliases(models: Mapping[str, object]) -> Iterator[tuple[Location, str, str]]:
    for name, entry in models.items():
        yield from _listed(("models", name), entry, name)
    for name, entry in models.items():
        for adapter, spec in _mapping(_mapping(entry).get("adapters")).items():
            yield from _listed(("models", name, "adapters", adapter), spec, f"{name}:{adapter}")


def _listed(location: Location, entry: object, owner: str) -> Iterator[tuple[Location, str, str]]:
    aliases = _mapping(entry).get("aliases")
    if isinstance(aliases, list | tuple):
        for index, alias in enumerate(aliases):
            if isinstance(alias, str):
                yield (*location, "aliases", index), alias, owner
    for alias in _mapping(aliases):
        yield (*location, "aliases", alias), alias, owner


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, Mapping) else {}
