"""Calls that a model writes as JSON, passed on while they are written. Never touches mlx."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from mlx_roster.engine.stops import Stops
from mlx_roster.engine.tools import Calls, Ended, Malformed, identity, loaded, named, object_text

_SPACE = " \t\r\n"

#: What models call the arguments of a call.
_ARGUMENTS = ("arguments", "parameters")


class Written:
    """Calls as JSON, passed on while they are written: an object for each, one after the other or in an array.

    They end at one of `ends`; without any, where something else follows. A `start` after a call begins the next.
    """

    def __init__(self, calls: Calls, start: str, ends: Sequence[str]) -> None:
        self._calls = calls
        #: What has been read and is not yet said in any way.
        self._raw = [start]
        #: What may stand where no call is: this before the first, and commas and brackets after one.
        self._between = _SPACE + "["
        self._call: _Call | None = None
        self._after = Stops([*ends, start]) if ends else None
        self._start = start
        self._over = False

    def add(self, text: str) -> Ended | None:
        for place, character in enumerate(text):
            try:
                over = self._over or self._take(character)
            except Malformed:
                if self._call is None or not self._call.begun:
                    return Ended("".join(self._raw), text[place:])
                self._close()
                over = True
            if over:
                return self._pass(text[place:])
        if self._call is not None:
            self._call.flush()
        return None

    def finish(self, ended: bool) -> str:
        if self._over and self._after is not None:
            self._raw.append(self._after.finish())
        if self._call is not None and self._call.begun:
            self._call.flush()
            if ended:
                self._calls.end()
            return ""
        return "".join(self._raw)

    def _take(self, character: str) -> bool:
        """Whether the calls are over, before this character."""
        if self._call is None and character != "{":
            if character not in self._between:
                if self._between.endswith("["):
                    raise Malformed("no object")
                return True
            if self._between.endswith("["):
                self._raw.append(character)
            return False
        if self._call is None:
            self._call = _Call(self._calls)
        else:
            self._call.take(character)
        self._raw.append(character)
        if self._call.done:
            self._close()
        return False

    def _close(self) -> None:
        """The call in hand is what it is now."""
        if self._call is not None:
            self._call.flush()
        self._calls.end()
        self._call = None
        self._raw = []
        self._between = _SPACE + ",]"

    def _pass(self, text: str) -> Ended | None:
        """Look for the end; what comes before it belongs to no call."""
        if self._after is None:
            return Ended("", text)
        self._over = True
        passed, found, rest = self._after.find(text)
        self._raw.append(passed)
        if found is None:
            return None
        if found != self._start:
            return Ended("", rest)
        return Ended("".join(self._raw).strip() and "".join(self._raw), found + rest)


class _Call:
    """One call, from behind its opening brace: `"name": …, "arguments": {…}}`, in any order, and with whatever else."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._expects: Literal["key", "colon", "value", "comma"] = "key"
        self._key: str | None = None
        self._value: _Value | None = None
        self._name = ""
        self._own: str | None = None
        self._arguments: str | None = None
        #: How much has been passed on of the value in hand; None where it is not while it is written.
        self._passed: int | None = None
        self.begun = False
        self.done = False

    def take(self, character: str) -> None:
        """Raises Malformed."""
        if self._value is not None:
            belongs = self._value.take(character)
            if self._value.complete:
                self._settle(self._value)
            if belongs:
                return
        if character in _SPACE:
            return
        match self._expects, character:
            case "key", '"':
                self._value = _Value(character)
            case "colon", ":":
                self._expects = "value"
            case "value", _:
                self._begin_value(character)
            case "comma", ",":
                self._expects = "key"
            case "key" | "comma", "}":
                self._end()
            case _:
                raise Malformed("not JSON")

    def flush(self) -> None:
        """Pass on what has come of the arguments."""
        if self._value is not None and self._passed is not None:
            self._calls.argue("".join(self._value.characters[self._passed :]))
            self._passed = len(self._value.characters)

    def _begin_value(self, character: str) -> None:
        self._value = _Value(character)
        if self._name and self._arguments is None and self._key in _ARGUMENTS and character == "{":
            self._begin()
            self._passed = 0

    def _settle(self, value: _Value) -> None:
        self.flush()
        self._value = None
        text = "".join(value.characters)
        if self._expects == "key":
            self._key, self._expects = str(loaded(text)), "colon"
            return
        self._expects = "comma"
        if self._passed is not None:
            self._passed, self._arguments = None, text
        elif self._key in _ARGUMENTS and self._arguments is None:
            self._arguments = object_text(text)
        elif self._key in ("name", "id"):
            self._label(loaded(text))
        if self._name and self._arguments is not None and not self.begun:
            self._begin()
            self._calls.argue(self._arguments)

    def _label(self, label: Any) -> None:
        if self._key == "id":
            self._own = identity(label)
        else:
            self._name = self._name or named(label)

    def _begin(self) -> None:
        self.begun = True
        self._calls.begin(self._name, self._own)

    def _end(self) -> None:
        if not self._name:
            raise Malformed("a call without a name")
        if not self.begun:
            self._begin()
            self._calls.argue("{}")
        self.done = True


class _Value:
    """One JSON value, found to its end by quotes and brackets."""

    def __init__(self, first: str) -> None:
        self.characters: list[str] = []
        self.complete = False
        self._closers: list[str] = []
        self._quoted = self._escaped = False
        self._bare = first not in '{["'
        if self._bare and not (first.isalnum() or first == "-"):
            raise Malformed("not JSON")
        self.take(first)

    def take(self, character: str) -> bool:
        """Whether this character is part of the value."""
        if self._bare and character in _SPACE + ",}":
            self.complete = True
            return False
        if self._quoted:
            self._quote(character)
        else:
            self._nest(character)
        self.characters.append(character)
        self.complete = not (self._bare or self._quoted or self._closers)
        return True

    def _quote(self, character: str) -> None:
        if self._escaped:
            self._escaped = False
        elif character == "\\":
            self._escaped = True
        elif character == '"':
            self._quoted = False

    def _nest(self, character: str) -> None:
        if character == '"':
            self._quoted = True
        elif character in "{[":
            self._closers.append("}" if character == "{" else "]")
        elif character in "}]" and (not self._closers or self._closers.pop() != character):
            raise Malformed("not JSON")
