"""What a model says, parted by its format's markers: the answer, reasoning, and calls. Never touches mlx.

Text comes here with the names of special tokens, `wrapped` where they are not ordinary text. mlx-lm says what the
markers are and between which states they lead; the names of the states are its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from mlx_roster.engine.stops import Stops
from mlx_roster.engine.tools import Reader

#: What a channel is given: "normal" is the answer, and "tool", always empty, the beginning of a call.
Segment = tuple[str, str]

#: State → marker → the state that it leads to.
Moves = Mapping[str, Mapping[str, str]]

#: How many of a prompt's last tokens may open the reasoning that the model is to go on with.
_OPENING = 32

_BLANKS = " \t\r\n"

# Decoded text has no lone surrogates: one before each character tells a special token from the word that it reads as.
_SPECIAL = re.compile("\ud800.|\ud801", re.DOTALL)
_SIGNS = re.compile("[\ud800\ud801]")


def wrapped(name: str) -> str:
    """A special token in a text."""
    return "".join(f"\ud800{character}" for character in name) + "\ud801"


def unwrapped(text: str) -> str:
    """With special tokens by their names."""
    return _SIGNS.sub("", text)


def _blanked(text: str) -> str:
    """Without special tokens."""
    return _SPECIAL.sub("", text) if "\ud800" in text else text


def markers(tokenizer: Any, *, calls: bool) -> dict[str, dict[str, str]]:
    """How the text of one of mlx-lm's tokenizers moves between states; without `calls`, none is looked for."""
    moves: dict[str, dict[str, str]] = {"normal": {}}
    for state, edges in tokenizer.response_transitions.items():
        moves.setdefault(state, {}).update((marker, to) for marker, to in edges if calls or to != "tool")
    if tokenizer.has_thinking:
        moves["normal"][tokenizer.think_start] = "reasoning"
        moves.setdefault("reasoning", {})[tokenizer.think_end] = "normal"
    if calls and tokenizer.has_tool_calling:
        if not any("tool" in edges.values() for edges in moves.values()):
            moves["normal"][tokenizer.tool_call_start] = "tool"
        if tokenizer.has_thinking:
            moves["reasoning"].setdefault(tokenizer.tool_call_start, "tool")
    for marker in tokenizer.structural_markers:
        moves["normal"].setdefault(marker, "normal")
    return moves


def spelled(moves: Moves, specials: Iterable[str]) -> dict[str, dict[str, str]]:
    """The same, each marker also as it reads where its special tokens are wrapped."""
    names = sorted((name for name in specials if name), key=len, reverse=True)
    if not names:
        return {state: dict(edges) for state, edges in moves.items()}
    pattern = re.compile("|".join(map(re.escape, names)))
    return {
        state: dict(edges) | {pattern.sub(lambda match: wrapped(match[0]), marker): to for marker, to in edges.items()}
        for state, edges in moves.items()
    }


def thinking(tokenizer: Any, prompt_ids: Sequence[int]) -> bool:
    """Whether a prompt ends with the beginning of the model's reasoning."""
    if not tokenizer.has_thinking:
        return False
    last = list(prompt_ids[-_OPENING:])
    start = tokenizer.rfind_think_start(last)
    if start < 0:
        return False
    # What somebody wrote about the marker is followed by more: at least the end of the message.
    opened = last[start + len(tokenizer.think_start_tokens) :]
    return not opened or not tokenizer.decode(opened, skip_special_tokens=False).strip()


class Channels:
    """Parts one sequence's text, however it arrives in pieces. `reader` makes what reads calls, from their marker on.

    Newlines next to a marker are the format's: those right inside of reasoning, and those after it. So are newlines and
    blanks where there is nothing else before a marker or after a call. With `bare`, the answer is read without any
    marker; `forced`, it can be nothing but a call.
    """

    def __init__(
        self,
        moves: Moves,
        state: str = "normal",
        reader: Callable[[str, str], Reader] | None = None,
        bare: bool = False,
        forced: bool = False,
    ) -> None:
        self.state = state
        self._moves = moves
        self._reader_of = reader
        self._bare = bare and reader is not None
        self._forced_to_call = forced
        self._finders = {name: Stops(edges) for name, edges in moves.items()}
        self._finder = self._finders.get(state) or Stops(())
        self._reader: Reader | None = None
        #: Where the text of a call that is none goes, and what of it was read before the marker.
        self._origin, self._before = "normal", ""
        #: Space that is the format's if a marker follows. With `_dropping` its newlines are anyway.
        self._space = ""
        self._fresh, self._dropping = True, False
        #: A call came last: with nothing after it, the space is the format's too.
        self._called = False
        self._said: list[Segment] = []

    @property
    def holding(self) -> bool:
        """Whether the end of the text may begin a marker."""
        return self._finder.holding

    def passes(self, text: str) -> bool:
        """Whether this is all answer, as it stands: what `add` would say, and need not be asked."""
        inside = self.state == "normal" and not self._fresh
        return inside and self._finder.passes(text) and "\ud800" not in text

    def add(self, text: str) -> Iterator[Segment]:
        """What this lets be said, in order. Text that nobody iterates to is not read."""
        while text:
            text = self._read(text) if self._reader is None else self._call(self._reader, text)
            yield from self._drain()

    def finish(self, ended: bool) -> Iterator[Segment]:
        """What was held back, once nothing can follow; `ended` by the model itself."""
        # What is cut off of a call that had to be made is the beginning of no answer.
        wanted = ended or not self._forced_to_call
        if self._reader is not None:
            raw = self._reader.finish(ended)
            self._reader, self.state = None, self._origin
            if raw and wanted:
                self._say(self._before + raw)
        elif wanted or self.state == "reasoning":
            self._say(self._finder.finish())
        if not self._called and (wanted or self.state == "reasoning"):
            self._put(self._due(self._space))
        yield from self._drain()

    def _drain(self) -> list[Segment]:
        said, self._said = self._said, []
        return said

    def _read(self, text: str) -> str:
        shown, found, rest = self._finder.find(text)
        to = None if found is None else self._moves[self.state][found]
        if self._bare and self.state == "normal":
            if _blanked(shown).strip() or (found and to != "reasoning"):
                return self._forced(shown + (found or "") + rest)
            # What is forced is JSON: space before it is nobody's.
            shown = ""
        self._say(shown)
        if found is None or to is None:
            return rest
        if to == "reasoning" and self.state == "normal" and not self._fresh and "\ud800" not in found:
            # In the middle of an answer a word is a word.
            self._say(found)
        elif to == "tool" and self._reader_of is not None:
            self._begin(self._reader_of(unwrapped(found), self.state))
        elif to != self.state:
            self._enter(to, dropping=self.state == "reasoning")
        return rest

    def _forced(self, text: str) -> str:
        assert self._reader_of is not None
        self._bare = False
        self._begin(self._reader_of("", self.state))
        return _blanked(text)

    def _begin(self, reader: Reader) -> None:
        self._reader = reader
        self._said.append(("tool", ""))
        self._origin = self.state if self.state == "reasoning" else "normal"
        self._before, self._space = self._due(self._space), ""
        self.state = "tool"

    def _call(self, reader: Reader, text: str) -> str:
        ended = reader.add(text)
        if ended is None:
            return ""
        self._reader = None
        if ended.raw:
            self.state = self._origin
            self._finder = self._finders[self.state]
            self._say(self._before + ended.raw)
        else:
            self._enter("normal")
            self._called = True
        return ended.rest

    def _enter(self, state: str, dropping: bool = False) -> None:
        self.state = state
        self._finder = self._finders.get(state) or Stops(())
        self._space = ""
        self._fresh, self._dropping, self._called = True, dropping, False

    def _say(self, text: str) -> None:
        text = _blanked(text)
        if self.state == "reasoning":
            self._think(text)
        elif self.state == "normal":
            self._answer(text)

    def _answer(self, text: str) -> None:
        if not self._fresh:
            self._put(text)
            return
        text = self._space + text
        if not text.strip(_BLANKS):
            self._space = text
            return
        self._put(self._due(text))
        self._space = ""
        self._fresh = self._dropping = self._called = False

    def _think(self, text: str) -> None:
        if self._fresh:
            text = text.lstrip("\n")
        if not text:
            return
        self._fresh = False
        text = self._space + text
        said = text.rstrip("\n")
        self._space = text[len(said) :]
        self._put(said)

    def _due(self, text: str) -> str:
        """What of the answer's beginning is the model's own."""
        return text.lstrip("\n") if self._dropping else text

    def _put(self, text: str) -> None:
        if text:
            self._said.append((self.state, text))
