"""The rule for every field: applied, or refused; where nobody here knows it, named in `x-roster-ignored`."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from typing import Any
from urllib.parse import quote

from mlx_roster.errors import InvalidRequest, UnsupportedParameter

#: Accepted, without effect on the answer.
INERT = frozenset({"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"})

#: Fields that others know and that are refused, whatever they ask for, with what to do instead.
REFUSED: Mapping[str, str] = {
    "chat_template": "chat_template cannot come with a request: the roster has it, as chat_template of a model",
    "functions": "functions are not supported: send them as tools",
    "function_call": "function_call is not supported: send tools and tool_choice",
    "suffix": "suffix is not supported",
}

# Close enough for "max_new_tokens" and "repeat_penalty" to be refused rather than ignored.
_RESEMBLES = 0.8

# Each unknown name is compared with all known ones: a body of a million names would keep the event loop busy.
_MAX_UNKNOWN = 32


def sift(body: Mapping[str, Any], served: Collection[str], known: Collection[str]) -> tuple[dict[str, Any], list[str]]:
    """What of `body` this route serves, and the names of what nobody knows. A null is a field left out.

    `served` are the route's own fields, `known` those of any route. Raises InvalidRequest for a field of another
    route and for a name that is nearly one of ours, UnsupportedParameter for one that is served nowhere.
    """
    kept: dict[str, Any] = {}
    unknown: list[str] = []
    for name, value in body.items():
        if value is None or name in INERT:
            continue
        if name in served:
            kept[name] = value
        elif name in REFUSED:
            raise UnsupportedParameter(REFUSED[name], param=name)
        elif name in known:
            raise InvalidRequest(f"{name} is not a field of this route", param=name)
        else:
            _refuse_near_miss(name, {*served, *REFUSED, *INERT})
            _note(name, unknown)
    return kept, unknown


def sift_inner(field: str, inner: Mapping[str, Any], served: Collection[str]) -> tuple[dict[str, Any], list[str]]:
    """The same of a field that is an object of fields, all of which may be left out. Names are `field.name`."""
    kept: dict[str, Any] = {}
    unknown: list[str] = []
    for name, value in inner.items():
        if value is None:
            continue
        if name in served:
            kept[name] = value
        else:
            _refuse_near_miss(name, served, f"{field}.")
            _note(f"{field}.{name}", unknown)
    return kept, unknown


def _note(name: str, unknown: list[str]) -> None:
    unknown.append(name)
    if len(unknown) > _MAX_UNKNOWN:
        raise InvalidRequest(f"more than {_MAX_UNKNOWN} unknown fields, such as {shown(unknown[:3])}")


def shown(names: Collection[str]) -> str:
    """Names that a client chose, fit for a header or a message: ASCII, and not without end."""
    return ",".join(quote(name[:64])[:96] for name in names)


def _refuse_near_miss(name: str, known: Collection[str], within: str = "") -> None:
    close = difflib.get_close_matches(name[:64].lower(), known, n=1, cutoff=_RESEMBLES)
    if close:
        path = f"{within}{shown([name])}"
        raise InvalidRequest(f"{path} is not a known field; did you mean {close[0]}?", param=path)
