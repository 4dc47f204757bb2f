"""What a line of the log is: text for people, or JSON for machines. Nothing that is logged can make a line of its own.

What a record is about, beside its message, it is given as `extra=fields(...)`. An exception in a record with a
`request_id` is told without its words, since these may quote what a client sent: only where it came from, and its type.
"""

from __future__ import annotations

import json
import logging
import math
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

_NONE: Mapping[str, Any] = MappingProxyType({})


def fields(**named: Any) -> dict[str, Mapping[str, Any]]:
    """The `extra` of a record: what it is about. Those that are None are left out."""
    return {"fields": {name: value for name, value in named.items() if value is not None}}


def fields_of(record: logging.LogRecord) -> Mapping[str, Any]:
    """What a record was given."""
    given = record.__dict__.get("fields", _NONE)
    return given if isinstance(given, Mapping) else _NONE


def printable(text: str) -> str:
    """`text` with all escaped that breaks a line, moves a cursor or turns the direction of writing."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)


def written(value: Any) -> str:
    """The value of `name=value`: in quotes where it would not be one word."""
    if isinstance(value, float):
        return f"{value:.3f}".rstrip("0").rstrip(".")
    text = str(value)
    plain = text.isprintable() and text and not any(char in ' "=' for char in text)
    return text if plain else '"' + text.encode("unicode_escape").decode("ascii").replace('"', "'") + '"'


def outline(error: BaseException) -> str:
    """A traceback without what the exceptions say."""
    told: list[str] = []
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        told.append("".join(traceback.format_tb(one.__traceback__)) + type(one).__qualname__)
        one = one.__cause__ or (None if one.__suppress_context__ else one.__context__)
    return "Traceback, without what the exceptions say:\n" + "\n  and so\n".join(reversed(told))


class _Lines(logging.Formatter):
    """With `words`, exceptions are always told in full."""

    def __init__(self, *, words: bool = False, datefmt: str | None = None) -> None:
        super().__init__(datefmt=datefmt)
        self._words = words

    def exception(self, record: logging.LogRecord) -> str | None:
        about = fields_of(record)
        if not record.exc_info or record.exc_info[1] is None:
            return about.get("exception")
        if "request_id" in about and not self._words:
            return outline(record.exc_info[1])
        return self.formatException(record.exc_info)


class TextLines(_Lines):
    """For people. Where a record takes more than one line, the others are indented: no line begins like a record that
    is none. `stamped` with time and level, unless something else shows these."""

    def __init__(self, *, stamped: bool = True, words: bool = False, datefmt: str | None = None) -> None:
        super().__init__(words=words, datefmt=datefmt)
        self._stamped = stamped

    def format(self, record: logging.LogRecord) -> str:
        text = record.getMessage()
        if self._stamped:
            text = f"{self.formatTime(record, self.datefmt)} {record.levelname} {text}"
        if (exception := self.exception(record)) is not None:
            text = f"{text}\n{exception}"
        return "\n    ".join(printable(line) for line in text.split("\n"))


class JsonLines(_Lines):
    """One object on one line, in ASCII: `time`, `level`, `logger`, `message`, the record's fields, and `exception`."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")[:-6] + "Z",
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {name: _finite(value) for name, value in fields_of(record).items() if name not in line}
        if (exception := self.exception(record)) is not None:
            line["exception"] = exception
        # Python's own: it escapes what is not ASCII, half characters too, but for this one.
        return json.dumps(line, default=str).replace("\x7f", "\\u007f")


def _finite(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
