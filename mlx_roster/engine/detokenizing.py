"""Token ids to text as it grows, exact to the byte. Never touches mlx."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable
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
    known = pieces(tokenizer)
    if known is None:
        return lambda: WindowDetokenizer(tokenizer)
    return lambda: ByteDetokenizer(known)


def pieces(tokenizer: Any) -> Pieces | None:
    """The bytes of its tokens, where each has its own."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    # A tokenizer with a `decode` of its own means to be asked.
    ordinary = getattr(tokenizer.decode, "__func__", None) is PreTrainedTokenizerBase.decode
    to_bytes = _byte_rule(backend.decoder) if backend is not None and ordinary else None
    return None if to_bytes is None else Pieces(backend, to_bytes)


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
        self._size = len(tokenizer)
        self._window: list[int] = list(tokenizer.encode("a", add_special_tokens=False))[-1:]
        self._shown = self._text()
        self._held = 0

    def _text(self) -> str:
        text: str = self._tokenizer.decode(self._window, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def add(self, token: int) -> str:
        if token >= self._size:
            # Models may have more logits than their tokenizer has tokens, and not every decoder takes such an id.
            return ""
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


def specials(tokenizer: Any) -> dict[int, str]:
    """The tokens that a decode leaves out, by their names."""
    added = tokenizer.added_tokens_decoder.items()
    return {token: described.content for token, described in added if described.special}
