"""Strings looked for in a text as it grows, however it arrives in pieces."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable


class Stops:
    """Cuts a growing text at the stop string that is complete first, however the text arrives in pieces.

    Where several are complete with the same character the longest counts, so no part of any is let through. Holds
    back the longest end of the text that may begin a stop string, and no more.
    """

    def __init__(self, stops: Iterable[str]) -> None:
        self._stops = frozenset(stops)
        self._sorted = sorted(self._stops)
        self._firsts = frozenset(stop[0] for stop in self._stops)
        self._lengths = sorted({len(stop) for stop in self._stops})
        self._held = ""

    @property
    def holding(self) -> bool:
        """Whether some text is held back."""
        return bool(self._held)

    def passes(self, text: str) -> bool:
        """Whether all of this is safe to show, and nothing is held back."""
        return not self._held and self._firsts.isdisjoint(text)

    def add(self, text: str) -> tuple[str, bool]:
        """The text that is safe to show, and whether a stop string is complete; after that there is no more."""
        shown, found, _ = self.find(text)
        return shown, found is not None

    def find(self, text: str) -> tuple[str, str | None, str]:
        """The text before a stop string, the one that is complete, if any, and what of `text` comes after it."""
        if self.passes(text):
            return text, None, ""
        shown = ""
        held = self._held
        for place, character in enumerate(text):
            if not held and character not in self._firsts:
                shown += character
                continue
            held += character
            match = self._match(held)
            if match:
                self._held = ""
                return shown + held[:-match], held[-match:], text[place + 1 :]
            start = 0
            while start < len(held) and not self._begins(held[start:]):
                start += 1
            shown += held[:start]
            held = held[start:]
        self._held = held
        return shown, None, ""

    def finish(self) -> str:
        """What was held back, once nothing can follow."""
        held, self._held = self._held, ""
        return held

    def _match(self, held: str) -> int:
        """The length of the longest stop string that `held` ends with, or 0."""
        longest = 0
        for length in self._lengths:
            if length > len(held):
                break
            if held[-length:] in self._stops:
                longest = length
        return longest

    def _begins(self, text: str) -> bool:
        """Whether some stop string begins with `text`: if so, it is the first that does not sort before it."""
        place = bisect_left(self._sorted, text)
        return place < len(self._sorted) and self._sorted[place].startswith(text)
