"""Calls of functions in the text of a model, read as it grows. Never touches mlx."""

from __future__ import annotations

import json
import logging
import re
import secrets
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from mlx_roster.core import CallDelta
from mlx_roster.engine.stops import Stops

logger = logging.getLogger(__name__)

#: What a parser of mlx-lm's makes of the text of one or several calls.
Parse = Callable[[str], Any]


#: Halves of characters, which text may not have.
_HALVES = re.compile("[\ud800-\udfff]")


class Malformed(ValueError):
    """This is no call: the text is not what the model's format has."""


class Calls:
    """The calls of one sequence. Without `parallel` only the first is passed on.

    `short` ids are what the templates of Mistral take back, and nothing else.
    """

    def __init__(self, parallel: bool, short: bool = False) -> None:
        self._parallel = parallel
        self._short = short
        self._deltas: list[CallDelta] = []
        self._begun = 0
        self._ended = 0

    @property
    def called(self) -> bool:
        """Whether a call is complete."""
        return self._ended > 0

    @property
    def full(self) -> bool:
        """Whether there may be no other."""
        return self.called and not self._parallel

    def begin(self, name: str, own: str | None = None) -> None:
        """The next call; `own` is the id that the model gave it."""
        self._begun += 1
        self._say(CallDelta(self._begun - 1, "", own or self._id(), name))

    def argue(self, arguments: str) -> None:
        """More of the arguments of the call that was begun last."""
        if arguments:
            # In JSON half a character can be written: only as an escape can it go anywhere.
            whole = _HALVES.sub(lambda half: f"\\u{ord(half[0]):04x}", arguments)
            self._say(CallDelta(self._begun - 1, whole))

    def end(self) -> None:
        """The call that was begun last is all there."""
        self._ended += 1

    def take(self) -> list[CallDelta]:
        """What was said since the last time, one delta for each call."""
        deltas, self._deltas = self._deltas, []
        return deltas

    def _id(self) -> str:
        return secrets.token_hex(5)[:9] if self._short else f"call_{secrets.token_hex(12)}"

    def _say(self, delta: CallDelta) -> None:
        if delta.index and not self._parallel:
            return
        if self._deltas and self._deltas[-1].index == delta.index:
            last = self._deltas.pop()
            delta = CallDelta(last.index, last.arguments + delta.arguments, last.id, last.name)
        self._deltas.append(delta)


class Ended(NamedTuple):
    """A Reader is done. `raw` is what turned out to be no call, to be said as it is; `rest` has not been read."""

    raw: str
    rest: str


class Reader(Protocol):
    """Reads the text between two markers, or from a marker to the end."""

    def add(self, text: str) -> Ended | None:
        """More of the text. After an Ended there must be no more."""

    def finish(self, ended: bool) -> str:
        """Nothing follows. Returns what is to be said as it is; `ended` by the model itself, and not cut off."""


class Parsed:
    """Text that a parser of mlx-lm's is given once it is complete: at one of `ends`, or with the sequence.

    One of `breaks` in it shows that it is no call.
    """

    def __init__(self, calls: Calls, parse: Parse, start: str, ends: Sequence[str], breaks: Sequence[str]) -> None:
        self._calls = calls
        self._parse = parse
        self._raw = [start]
        self._text: list[str] = []
        self._endless = not ends
        self._breaks = frozenset(breaks)
        self._marks = Stops([*ends, *breaks])

    def add(self, text: str) -> Ended | None:
        text, found, rest = self._marks.find(text)
        self._text.append(text)
        if found is None:
            return None
        if found in self._breaks:
            return Ended("".join([*self._raw, *self._text]), found + rest)
        return Ended("" if self._read() else "".join([*self._raw, *self._text, found]), rest)

    def finish(self, ended: bool) -> str:
        self._text.append(self._marks.finish())
        if (ended or self._endless) and self._read():
            return ""
        return "".join([*self._raw, *self._text])

    def _read(self) -> bool:
        try:
            parsed = self._parse("".join(self._text))
            calls = [_checked(call) for call in (parsed if isinstance(parsed, list) else [parsed])]
        except Exception as error:  # noqa: BLE001  mlx-lm's parsers raise whatever comes of text not made for them
            # Not what it says: that quotes the answer.
            logger.debug("what should be a call cannot be read: %s", type(error).__name__)
            return False
        for own, name, arguments in calls:
            self._calls.begin(name, own)
            self._calls.argue(arguments)
            self._calls.end()
        return bool(calls)


def _checked(call: dict[str, Any]) -> tuple[str | None, str, str]:
    """The id, the name and the arguments, which must be an object, of a call that was parsed."""
    own, name, arguments = identity(call.get("id")), named(call["name"]), call.get("arguments")
    if arguments is None:
        arguments = {}
    if isinstance(arguments, str):
        return own, name, object_text(json.dumps(arguments))
    if not isinstance(arguments, dict):
        raise Malformed("arguments that are not an object")
    return own, name, json.dumps(arguments, ensure_ascii=False, allow_nan=False)


def named(label: object) -> str:
    """The name of a function. Raises Malformed."""
    if not isinstance(label, str) or not label or _HALVES.search(label):
        raise Malformed("a call without a name")
    return label


def identity(label: object) -> str | None:
    """The id that a model gave a call, if it did."""
    return label if isinstance(label, str) and label and not _HALVES.search(label) else None


def object_text(text: str) -> str:
    """The JSON of an object, from the text of arguments: one, or a string that has one, or none."""
    if text.startswith("{"):
        return text
    if text == "null":
        return "{}"
    inner = loaded(text)
    if not isinstance(inner, str):
        raise Malformed("arguments that are not an object")
    if not inner.strip():
        return "{}"
    if not isinstance(loaded(inner), dict):
        raise Malformed("arguments that are not an object")
    return inner.strip()


def loaded(text: str) -> Any:
    try:
        return json.loads(text, strict=False)
    except (ValueError, RecursionError) as error:
        raise Malformed("not JSON") from error


class Undecided:
    """For a format that may be JSON or not: what comes first, but for whitespace, decides."""

    def __init__(self, written: Reader, parsed: Reader) -> None:
        self._written = written
        self._parsed = parsed
        self._chosen: Reader | None = None
        self._held = ""

    def add(self, text: str) -> Ended | None:
        if self._chosen is None:
            text, self._held = self._held + text, ""
            first = text.lstrip()[:1]
            if not first:
                self._held = text
                return None
            self._chosen = self._written if first in "[{" else self._parsed
        return self._chosen.add(text)

    def finish(self, ended: bool) -> str:
        return (self._chosen or self._parsed).finish(ended) + self._held
