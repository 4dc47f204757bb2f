"""How an adapter is refused: in the file's own names and shapes, whatever the file holds.

Nothing here names the adapter; its reader does (`loaders.adapters`), once and for all refusals.
"""

from __future__ import annotations

import reprlib

from mlx_roster.errors import AdapterIncompatible

#: A name longer than this many characters is cut: real ones have a hundred.
_NAME = 200

#: Where a list of offending tensors is cut, in characters: two thousand tensors. It is the body of a response.
_LIST = 2**18

_values = reprlib.Repr()
_values.maxlevel, _values.maxdict, _values.maxlist, _values.maxstring = 3, 8, 8, _NAME


def refusal(reason: str) -> AdapterIncompatible:
    """The error for an adapter that cannot be served, and why."""
    return AdapterIncompatible(reason, param="adapters")


def shown(value: object) -> str:
    """A value from an adapter's file as a message may show it: on one line, and short."""
    return _values.repr(value)


def named(name: str) -> str:
    """A name from an adapter's file as a message may show it: on one line, and short."""
    text = name if name.isprintable() else repr(name)[1:-1]
    return text if len(text) <= _NAME else text[:_NAME] + "…"


class Offences:
    """What is wrong with the tensors of one adapter, a line for each, so that one refusal lists them all."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def add(self, tensor: str, problem: str) -> None:
        """Note that `tensor`, by the name it has in the file, cannot be used."""
        self._lines.append(f"{named(tensor)}: {problem}")

    def check(self) -> None:
        """Raise AdapterIncompatible if there are any."""
        if self._lines:
            raise refusal("\n  ".join(["holds tensors that cannot be used:", *self._shortened()]))

    def _shortened(self) -> list[str]:
        room = _LIST
        for count, line in enumerate(self._lines):
            room -= len(line)
            if room < 0:
                return [*self._lines[:count], f"and {len(self._lines) - count} more"]
        return self._lines
