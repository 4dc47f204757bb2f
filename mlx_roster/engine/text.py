"""Token ids to text as it grows: exact to the byte, and cut off at the first stop string. Never touches mlx."""

from __future__ import annotations

import codecs
import json
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from transformers import PreTrainedTokenizerBase

_REPLACEMENT = "\ufffd"

#: Text, not bytes, at the end of a decode: no character has more bytes than this, so holding more back is in vain.
_LONGEST_CHARACTER = 4


class Detokenizer(Protocol):
    """One sequence's text. What `add` and `finish` return makes, in all, the text of its ids without special tokens.

    The first token keeps its leading space, and bytes that make no character become U+FFFD.
    """

    def add(self, token: int) -> str:
        """The text that this token completes."""

    def finish(self) -> str:
        """What was held back, waiting for the rest of a character."""


def detokenizers(tokenizer: Any) -> Callable[[], Detokenizer]:
    """What makes a Detokenizer for each new sequence of a model."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    # A tokenizer with a `decode` of its own means to be asked.
    ordinary = getattr(tokenizer.decode, "__func__", None) is PreTrainedTokenizerBase.decode
    to_bytes = _byte_rule(backend.decoder) if backend is not None and ordinary else None
    if to_bytes is None:
        return lambda: WindowDetokenizer(tokenizer)
    pieces = Pieces(backend, to_bytes)
    return lambda: ByteDetokenizer(pieces)


class Pieces(dict[int, bytes]):
    """Token id → its bytes, filled as ids come up. Special tokens and unknown ids have none."""

    def __init__(self, backend: Any, to_bytes: Callable[[str], bytes]) -> None:
        super().__init__()
        self._backend = backend
        self._to_bytes = to_bytes
        self._special = {token for token, added in backend.get_added_tokens_decoder().items() if added.special}

    def __missing__(self, token: int) -> bytes:
        name = None if token in self._special else self._backend.id_to_token(token)
        piece = b"" if name is None else self._to_bytes(name)
        self[token] = piece
        return piece


class ByteDetokenizer:
    """For tokenizers whose tokens are bytes, each for itself: nearly all. One look-up a token."""

    def __init__(self, pieces: Pieces) -> None:
        self._pieces = pieces
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode

    def add(self, token: int) -> str:
        return self._decode(self._pieces[token])

    def finish(self) -> str:
        return self._decode(b"", final=True)


class WindowDetokenizer:
    """For all other tokenizers: decodes the last few tokens again with each new one, and returns what was added.

    The window begins with an ordinary token that is not part of the text, since decoders trim what comes first.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._window: list[int] = list(tokenizer.encode("a", add_special_tokens=False))[-1:]
        self._shown = self._text()
        self._held = 0

    def _text(self) -> str:
        text: str = self._tokenizer.decode(self._window, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def add(self, token: int) -> str:
        self._window.append(token)
        self._held += 1
        text = self._text()
        if text.endswith(_REPLACEMENT) and self._held < _LONGEST_CHARACTER:
            return ""
        return self._show(text)

    def finish(self) -> str:
        return self._show(self._text())

    def _show(self, text: str) -> str:
        added = text[len(self._shown) :]
        # What was just shown is context enough for what comes next.
        if added:
            self._window = self._window[-max(self._held, 1) :]
            self._shown = self._text()
        self._held = 0
        return added


def _byte_rule(decoder: Any) -> Callable[[str], bytes] | None:
    """How a token's name says its bytes, for the decoders where it does without regard to its neighbours."""
    if decoder is None:
        return None
    described = json.loads(decoder.__getstate__())
    if described["type"] == "ByteLevel":
        return _byte_level
    if described["type"] != "Sequence":
        return None
    steps = [step for step in described["decoders"] if step["type"] != "Strip" or step["stop"]]
    replaces = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    if steps == [replaces, {"type": "ByteFallback"}, {"type": "Fuse"}]:
        return _byte_fallback
    return None


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's alphabet: printable bytes stand for themselves, the others, in order, for U+0100 and on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + index): byte for index, byte in enumerate(others)}


_BYTE_OF = _byte_alphabet()


def _byte_level(name: str) -> bytes:
    try:
        return bytes([_BYTE_OF[character] for character in name])
    except KeyError:
        # An added token: written as it reads.
        return name.encode()


def _byte_fallback(name: str) -> bytes:
    if len(name) == 6 and name.startswith("<0x") and name.endswith(">"):
        try:
            return bytes([int(name[3:5], 16)])
        except ValueError:
            pass
    return name.replace("▁", " ").encode()


class Stops:
    """Cuts a growing text at the stop string that is complete first, however the text arrives in pieces.

    Where several are complete with the same character the longest counts, so no part of any is let through. Holds
    back the longest end of the text that may begin a stop string, and no more.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = frozenset(stops)
        self._sorted = sorted(self._stops)
        self._firsts = frozenset(stop[0] for stop in self._stops)
        self._lengths = sorted({len(stop) for stop in self._stops})
        self._held = ""

    def add(self, text: str) -> tuple[str, bool]:
        """The text that is safe to show, and whether a stop string is complete; after that there is no more."""
        if not self._held and self._firsts.isdisjoint(text):
            return text, False
        shown = ""
        held = self._held
        for character in text:
            if not held and character not in self._firsts:
                shown += character
                continue
            held += character
            match = self._match(held)
            if match:
                self._held = ""
                return shown + held[:-match], True
            start = 0
            while start < len(held) and not self._begins(held[start:]):
                start += 1
            shown += held[:start]
            held = held[start:]
        self._held = held
        return shown, False

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


class TextStream:
    """One sequence's text from its ids, up to a stop string. `stopped` is set once one has been met."""

    def __init__(self, detokenizer: Detokenizer, stops: Sequence[str]) -> None:
        self._detokenizer = detokenizer
        self._stops = Stops(stops) if stops else None
        self.add: Callable[[int], str] = detokenizer.add if self._stops is None else self._add
        self.stopped = False

    def _add(self, token: int) -> str:
        return self._cut(self._detokenizer.add(token))

    def finish(self) -> str:
        """All that is left, once the last token has been added. May still meet a stop string."""
        text = self._detokenizer.finish()
        if self._stops is None:
            return text
        text = self._cut(text)
        return text if self.stopped else text + self._stops.finish()

    def _cut(self, text: str) -> str:
        if self._stops is None or not text:
            return text
        text, self.stopped = self._stops.add(text)
        return text
